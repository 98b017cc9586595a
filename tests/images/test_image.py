"""The image given to a model: scaling, digest, thumbnail, limits of a request."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageError, ImageTooLargeError, RequestError
from mlx_magic.images import opening as images_module
from mlx_magic.images.image import fit_pixels
from mlx_magic.images.opening import MAX_IMAGES, ImageInput, open_images, open_named_images

SIDES = st.one_of(st.integers(1, 300), st.integers(1, 10**7))


def opened(value: Any, **options: Any) -> ImageInput:
    (image,) = open_images(value, **options)
    return image


@given(SIDES, SIDES, st.integers(1, 10**8))
def test_scaling_down_keeps_the_pixel_limit_and_aspect_ratio(
    width: int, height: int, limit: int
) -> None:
    new_width, new_height = fit_pixels((width, height), limit)
    assert 1 <= new_width <= width
    assert 1 <= new_height <= height
    assert new_width * new_height <= max(limit, 1)
    if width * height <= limit:
        assert (new_width, new_height) == (width, height)
    elif min(new_width, new_height) > 1:
        # Within one pixel of the exact shape.
        assert abs(new_width * height - new_height * width) <= max(width, height)


def test_scaling_down_adds_a_note_and_keeps_original_size() -> None:
    image = opened(Image.new("RGB", (400, 300), "red"), max_pixels=1200)
    assert image.size == (40, 30)
    assert image.original_size == (400, 300)
    assert image.note == "scaled down from 400x300 to 40x30"


@pytest.mark.parametrize("bad", [0, -1, True, 2.5, "9"])
def test_invalid_pixel_limit_is_refused_before_anything_is_read(bad: Any) -> None:
    with pytest.raises(RequestError, match=r"max_pixels is .*whole number of 1 or more") as caught:
        open_images("no-such-file.png", max_pixels=bad)
    assert caught.value.option == "max_pixels"


def test_extreme_aspect_ratios_are_accepted() -> None:
    assert opened(Image.new("RGB", (1, 1))).thumbnail().width == 1
    line = opened(Image.new("RGB", (20_000, 1)), max_pixels=50)
    assert line.size == (50, 1)
    thumbnail = opened(Image.new("RGB", (20_000, 1))).thumbnail()
    assert (thumbnail.width, thumbnail.height) == (256, 1)


def test_digest_depends_on_pixels_and_shape() -> None:
    red = opened(Image.new("RGB", (4, 2), "red"), name="a")
    assert red.digest == opened(np.full((2, 4, 3), (255, 0, 0), np.uint8), name="b").digest
    assert red.digest != opened(Image.new("RGB", (2, 4), "red")).digest
    assert red.digest != opened(Image.new("RGB", (4, 2), "blue")).digest
    tall = opened(Image.linear_gradient("L").resize((3, 1300)))
    whole = hashlib.sha256(b"RGB 3x1300\n" + tall.pixels.tobytes()).hexdigest()
    assert tall.digest == whole


def test_later_changes_of_the_source_do_not_change_the_image() -> None:
    image, array = Image.new("RGB", (4, 4), "red"), np.zeros((4, 4), np.uint8)
    first, second = open_images([image, array])
    image.paste("blue", (0, 0, 4, 4))
    array[:] = 255
    assert first.pixels.getpixel((0, 0)) == (255, 0, 0)
    assert second.pixels.getpixel((0, 0)) == (0, 0, 0)


def test_a_thumbnail_fits_and_is_never_enlarged() -> None:
    large = opened(Image.new("RGB", (1000, 500), "red"))
    thumbnail = large.thumbnail()
    assert (thumbnail.width, thumbnail.height) == (256, 128)
    assert Image.open(io.BytesIO(thumbnail.data)).size == (256, 128)
    assert (large.thumbnail(64).width, large.thumbnail(64).height) == (64, 32)
    small = opened(Image.new("RGB", (30, 20))).thumbnail()
    assert (small.width, small.height) == (30, 20)
    with pytest.raises(RequestError, match="max_side"):
        large.thumbnail(0)


def test_a_thumbnail_is_the_smaller_of_png_and_jpeg() -> None:
    flat = opened(Image.new("RGB", (200, 200), "red")).thumbnail()
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    busy = opened(noise).thumbnail()
    assert (flat.mime, busy.mime) == ("image/png", "image/jpeg")
    assert Image.open(io.BytesIO(flat.data)).format == "PNG"
    assert Image.open(io.BytesIO(busy.data)).format == "JPEG"


def test_a_thumbnail_is_cached_and_depends_on_pixels_only() -> None:
    image = Image.new("RGB", (300, 300), "teal")
    plain = opened(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(300, 300), icc_profile=b"profile")
    dressed = opened(buffer)
    assert plain.thumbnail() is plain.thumbnail()
    assert plain.thumbnail().data == dressed.thumbnail().data


def test_repr_is_short() -> None:
    assert repr(opened(Image.new("RGB", (4, 2)), name="img")) == "<ImageInput 'img' 4x2>"


def test_open_image_is_returned_unchanged_unless_too_large() -> None:
    image = opened(Image.new("RGB", (40, 30)), name="img", max_pixels=300)
    assert opened(image) is image
    assert opened(image, max_pixels=300) is image
    smaller = opened(image, max_pixels=12)
    assert smaller.size == (4, 3)
    assert smaller.original_size == (40, 30)
    assert smaller.source == "img"
    assert smaller.note == "scaled down from 40x30 to 20x15; scaled down from 20x15 to 4x3"


def test_more_images_than_allowed_are_refused() -> None:
    tiny = Image.new("RGB", (1, 1))
    assert len(open_images([tiny] * MAX_IMAGES)) == MAX_IMAGES
    with pytest.raises(ImageError, match=f"At most {MAX_IMAGES} images .*list\\[64\\]"):
        open_images([tiny] * (MAX_IMAGES + 1))


def test_all_values_of_a_request_share_the_limits() -> None:
    tiny = Image.new("RGB", (1, 1))
    images = open_named_images([("a", tiny), (None, [tiny]), ("b", [tiny])])
    assert [image.source for image in images] == ["a", "list[0]", "b[0]"]
    with pytest.raises(ImageError, match=r"one request, b\[0\] is one too many"):
        open_named_images([("a", [tiny] * MAX_IMAGES), ("b", [tiny])])
    with pytest.raises(ImageError, match="b is empty"):
        open_named_images([("a", tiny), ("b", [])])
    assert open_named_images([]) == []


def test_endless_iterator_stops_at_the_limit() -> None:
    def endless() -> Any:
        while True:
            yield Image.new("RGB", (1, 1))

    with pytest.raises(ImageError, match="At most"):
        open_images(endless())


def test_total_pixels_of_a_request_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_PIXELS_TOTAL", 250)
    images = [Image.new("RGB", (10, 10)) for _ in range(3)]
    with pytest.raises(ImageTooLargeError, match="set max_pixels") as caught:
        open_images(images)
    assert (caught.value.size, caught.value.limit) == (300, 250)
    assert len(open_images(images, max_pixels=50)) == 3


def test_cancel_stops_between_images() -> None:
    token = CancelToken()

    class Cancels(Image.Image):
        def load(self) -> Any:
            token.cancel()
            return super().load()

    def never() -> Image.Image:
        raise AssertionError("read after the cancel")

    first = Cancels()
    first.im, first._mode, first._size = Image.new("RGB", (1, 1)).im, "RGB", (1, 1)
    second = Image.new("RGB", (1, 1))
    second.load = never  # type: ignore[method-assign, assignment]
    with pytest.raises(Cancelled):
        open_images([first, second], cancel=token)


@settings(max_examples=5, deadline=None)
@given(st.integers(2, 4))
def test_threads_can_open_images_concurrently(count: int) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    data, digests = buffer.getvalue(), []
    start = threading.Barrier(count)

    def work() -> None:
        start.wait()
        digests.append(opened(data).digest)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == count
    assert len(set(digests)) == 1


def test_import_of_images_loads_no_heavy_library() -> None:
    code = (
        "import sys, mlx_magic.images.opening\n"
        "heavy = {'PIL', 'numpy', 'pandas', 'matplotlib', 'mlx', 'http.client', 'ssl', 'IPython'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
