"""An image keeps its file, or its pixels compressed, and decodes them on demand."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mlx_magic.images import stored
from mlx_magic.images.image import ImageInput
from mlx_magic.images.opening import open_images
from mlx_magic.images.stored import to_png


def photo(width: int = 1200, height: int = 900, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    noise = Image.effect_noise((width // 8, height // 8), 60)
    noise.resize((width, height)).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def opened(value: Any, **options: Any) -> ImageInput:
    (image,) = open_images(value, **options)
    return image


def released(image: ImageInput) -> ImageInput:
    """Return the image without decoded pixels."""
    image.stored.pack()
    stored._recent.clear()
    return image


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("max_pixels", [None, 100_000])
def test_pixels_are_the_same_after_they_were_released(
    kind: str, options: dict[str, Any], max_pixels: int | None
) -> None:
    image = opened(photo(kind=kind, **options), max_pixels=max_pixels)
    before = image.pixels.tobytes()
    assert released(image).pixels.tobytes() == before
    assert pickle.loads(pickle.dumps(image)).pixels.tobytes() == before


def test_image_takes_its_file_in_memory_and_pickled() -> None:
    data = photo(4000, 3000, quality=80)
    image = released(opened(data))
    assert image.stored.nbytes == len(data)
    assert len(pickle.dumps(image)) <= 1.2 * len(data)
    image.thumbnail()
    small = sum(len(each.data) for each in image._thumbnails.values())
    assert len(pickle.dumps(image)) <= 1.2 * len(data) + small


def test_file_that_is_larger_than_its_pixels_is_not_kept() -> None:
    pages = io.BytesIO()
    first = Image.new("RGB", (40, 30), "red")
    first.save(pages, "TIFF", save_all=True, append_images=[first] * 20)
    image = released(opened(pages))
    assert image.stored.nbytes < 4_000
    assert image.pixels.getpixel((3, 3)) == (255, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 3])))
)
def test_compressed_pixels_are_lossless(array: np.ndarray[Any, Any]) -> None:
    image = opened(array)
    before = image.pixels.tobytes()
    png = to_png(image.pixels)
    assert Image.open(io.BytesIO(png)).convert("RGB").tobytes() == before
    assert released(image).pixels.tobytes() == before


def test_pixels_of_an_array_are_compressed_after_the_answer() -> None:
    image = opened(np.zeros((300, 400, 3), np.uint8))
    assert image.stored.nbytes == 4 * 300 * 400
    image.stored.release()
    for thread in threading.enumerate():
        if thread.name == "mlx-magic-pack":
            thread.join()
    assert image.stored.nbytes < 4_000


def test_pixels_stay_the_same_object_while_they_are_used() -> None:
    image = opened(photo())
    held = image.pixels
    image.stored.release()
    stored._recent.clear()
    assert image.pixels is held
    del held


def test_recent_pixels_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "RECENT_BYTES", 2 * 4 * 40 * 30)
    stored._recent.clear()
    images = [opened(photo(40, 30, kind="PNG")) for _ in range(3)]
    for image in images:
        image.stored.pack()
    assert stored._recent._nbytes <= 2 * 4 * 40 * 30
    stored._recent.clear()


def test_image_cannot_be_changed() -> None:
    image = opened(photo(40, 30))
    with pytest.raises(AttributeError, match="cannot be changed"):
        image.source = "other"
    with pytest.raises(AttributeError, match="cannot be changed"):
        del image.note
    assert copy.copy(image).digest == copy.deepcopy(image).digest == image.digest


def test_image_pickled_with_its_pixels_by_an_earlier_release_loads() -> None:
    pixels = Image.new("RGB", (4, 3), "red")
    image = ImageInput.__new__(ImageInput)
    image.__setstate__(
        {
            "pixels": pixels,
            "source": "old.png",
            "original_size": (4, 3),
            "digest": "d",
            "note": None,
            "_thumbnails": {},
        }
    )
    assert (image.size, image.pixels.getpixel((0, 0))) == ((4, 3), (255, 0, 0))
    assert pickle.loads(pickle.dumps(image)).pixels.tobytes() == pixels.tobytes()


def test_threads_that_decode_at_once_get_the_same_pixels() -> None:
    image = released(opened(photo()))
    start, found = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        found.append(image.pixels)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pixels) for pixels in found}) == 1
