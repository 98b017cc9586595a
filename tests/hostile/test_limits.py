"""Limits of images, each at its boundary; and checks for Cancel that other tests do not reach."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.color_modes import converted
from mlx_magic.images.opening import open_images
from tests.hostile.image_cases import CASES, encode, scans, segment
from tests.hostile.test_cancel import CancelAtCheck


def runs(width: int, height: int) -> bytes:
    """Return a BMP of runs of one pixel, which is read two bytes at a time."""
    header = struct.pack("<IIIIiiHHIIiiII", 0, 0, 1078, 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    row = b"".join(bytes([1, at & 255]) for at in range(width)) + b"\0\0"
    return b"BM" + header + bytes(range(256)) * 4 + row * height + b"\0\1"


def test_100_scans_are_accepted_and_101_refused() -> None:
    assert open_images(scans(80, 80, 99))[0].size == (80, 80)
    with pytest.raises(ImageDecodeError, match="more than 100 scans"):
        open_images(scans(80, 80, 100))


def test_cancel_ends_a_decoder_that_reads_byte_by_byte() -> None:
    data = runs(100, 100)
    token = CancelAtCheck(4)
    with pytest.raises(Cancelled):
        open_images(data, cancel=token)
    assert token.looks <= 5
    calm = CancelAtCheck(1_000_000)
    assert open_images(data, cancel=calm)[0].size == (100, 100)
    # About 20 000 reads; each of them would be a look too many, none too few.
    assert 100 < calm.looks < 1_000


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_cancel_ends_the_conversion_of_deep_gray(mode: str) -> None:
    image = Image.new(mode, (3000, 3000))
    calm = CancelAtCheck(1_000_000)
    open_images(image, cancel=calm)
    token = CancelAtCheck(calm.looks - 5)
    with pytest.raises(Cancelled):
        open_images(image, cancel=token)
    assert token.looks <= calm.looks - 4
    assert calm.looks > 9


def test_cancel_ends_a_compressed_tiff() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    data = encode(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    calm = CancelAtCheck(1_000_000)
    open_images(data, cancel=calm)
    token = CancelAtCheck(calm.looks // 2)
    with pytest.raises(Cancelled):
        open_images(data, cancel=token)
    assert token.looks <= calm.looks // 2 + 1


def test_load_truncated_images_setting_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.linear_gradient("L"), "PNG", compress_level=0)[:20_000]
    opened = Image.open(io.BytesIO(data))
    with pytest.raises(ImageDecodeError, match="truncated"):
        open_images(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert open_images(data)[0].size == (256, 256)
    assert open_images(opened)[0].size == (256, 256)
    few = (
        CASES["grey_jpeg_of_64_megapixels_in_a_few_bytes"]
        .make()
        .replace(struct.pack(">HH", 8000, 8000), struct.pack(">HH", 80, 80))
    )
    assert open_images(few)[0].size == (80, 80)


def test_later_tiff_page_is_read_if_the_first_is_incomplete() -> None:
    pages = io.BytesIO()
    first, second = Image.new("RGB", (30, 30), "red"), Image.new("RGB", (20, 10), "blue")
    first.save(pages, "TIFF", save_all=True, append_images=[second], compression="tiff_lzw")
    data = bytearray(pages.getvalue())
    (at,) = struct.unpack_from("<I", data, 4)
    for start in range(at + 2, at + 2 + 12 * data[at], 12):
        if struct.unpack_from("<H", data, start) == (279,):
            struct.pack_into("<I", data, start + 8, 1)
    image = Image.open(io.BytesIO(bytes(data)))
    with pytest.raises(ImageDecodeError):
        open_images(image, cancel=CancelToken())
    image.seek(1)
    (page,) = open_images(image)
    assert (page.size, page.note) == ((20, 10), "page 2 of 2")
    assert page.pixels.getpixel((0, 0)) == (0, 0, 255)


def test_scans_behind_the_end_of_a_jpeg_are_not_counted() -> None:
    # As a phone's film or a second image has them, each with a length that leads to the next.
    data = encode(Image.linear_gradient("L"), "JPEG", progressive=True)
    (image,) = open_images(data + b"\0\2" + segment(0xDA, b"\0\0\0\0") * 1000)
    assert image.pixels.tobytes() == open_images(data)[0].pixels.tobytes()


def test_dark_16_bit_pgm_is_as_bright_as_in_plain_pillow() -> None:
    data = b"P5 2 1 1000\n" + struct.pack(">HH", 1, 3)
    plain = converted(Image.open(io.BytesIO(data))).pixels
    assert open_images(data)[0].pixels.tobytes() == plain.tobytes()
