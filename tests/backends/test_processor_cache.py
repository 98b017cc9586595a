"""The cache of processed images: hits, misses, and sharing without side effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.vision.image_cache.processor_cache import ProcessorCache
from mlx_magic.images.image import ImageInput
from mlx_magic.images.opening import open_images

pytestmark = pytest.mark.usefixtures("mlx")


def seeded_images(*seeds: int) -> list[ImageInput]:
    held = [np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8) for seed in seeds]
    return open_images(held)


class ImageProcessor:
    """Converts images to floats and records their number."""

    size = 5

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, images: Any, *, return_rows: Any = False) -> Any:
        from transformers.image_processing_base import BatchFeature

        self.asked.append(len(images))
        held = {"pixel_values": np.stack([np.asarray(i, np.float32) for i in images])}
        return BatchFeature({**held, "rows": [[len(images)]]} if return_rows else held)


class Processor:
    """Removes its own entry from the output, as SmolVLM's does."""

    def __init__(self) -> None:
        self.image_processor: Any = ImageProcessor()

    def __call__(self, images: list[ImageInput], **options: Any) -> dict[str, Any]:
        made = self.image_processor([image.pixels for image in images], **options)
        rows = made.pop("rows", None)
        return {**made, "count": rows and rows[0].pop()}


def make(kept: ProcessorCache, processor: Processor, *seeds: int, **options: Any) -> dict[str, Any]:
    images = seeded_images(*seeds)
    with kept.intercepting(processor, images):
        inputs = processor(images, **options)
    with kept.keyed(images, inputs):
        return inputs


def test_same_images_are_processed_once() -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    original = processor.image_processor
    first = make(kept, processor, 1, 2, return_rows=True)
    again = make(kept, processor, 1, 2, return_rows=True)
    assert original.asked == [2]
    assert first["count"] == again["count"] == 2, "what one takes out is there for the next"
    assert np.array_equal(first["pixel_values"], again["pixel_values"])
    assert processor.image_processor is original


def test_other_images_order_or_options_are_processed_again() -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    original = processor.image_processor
    for seeds in ((1,), (1, 2), (2, 1), (2,)):
        found = make(kept, processor, *seeds)
        expected = np.stack([np.asarray(i.pixels, np.float32) for i in seeded_images(*seeds)])
        assert np.array_equal(found["pixel_values"], expected)
    assert original.asked == [1, 2, 2, 1]
    make(kept, processor, 1, return_rows=True)
    assert original.asked[4:] == [1]


def test_same_images_have_the_same_keys() -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    images = seeded_images(1)
    held = []
    for _ in range(2):
        with kept.intercepting(processor, images):
            inputs = processor(images)
        with kept.keyed(images, inputs) as names:
            assert names is not None
            held.append(names)
    assert held[0] is held[1]


def test_failed_processing_is_not_cached() -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    images = seeded_images(1)

    def fail() -> None:
        with kept.intercepting(processor, images):
            processor(images)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert kept.nbytes == 0
    assert type(processor.image_processor) is ImageProcessor
    make(kept, processor, 1)
    assert processor.image_processor.asked == [1, 1]


def test_processor_cache_is_bounded() -> None:
    kept, processor = ProcessorCache(3 * 2 * 240), Processor()
    for seed in range(10):
        make(kept, processor, seed)
        assert kept.nbytes <= kept.limit
    make(kept, processor, 9)
    assert processor.image_processor.asked == [1] * 10
    make(kept, processor, 0)
    assert len(processor.image_processor.asked) == 11
    kept.clear()
    assert kept.nbytes == 0
    make(ProcessorCache(0), processor, 3)


@pytest.mark.parametrize("option", [object(), {1: object()}])
def test_unknown_options_bypass_the_cache(option: Any) -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    for _ in range(2):
        make(kept, processor, 1, return_rows=option)
    assert processor.image_processor.asked == [1, 1]


def test_an_image_processor_keeps_its_attributes_and_kind() -> None:
    kept, processor = ProcessorCache(10**6), Processor()
    with kept.intercepting(processor, seeded_images(1)):
        assert processor.image_processor.size == 5
    with kept.intercepting(object(), seeded_images(1)):
        pass
    with kept.intercepting(processor, []):
        assert type(processor.image_processor) is ImageProcessor
