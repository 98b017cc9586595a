"""Ordinary images: the same pixels as plain Pillow, the same notes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_magic.errors import ImageError
from mlx_magic.images.color_modes import converted
from mlx_magic.images.opening import open_images
from tests.hostile.image_cases import encode, segment


def photo(width: int = 400, height: int = 300) -> Image.Image:
    """Return something with as much detail as a photo."""
    return Image.effect_noise((width // 8, height // 8), 60).resize((width, height)).convert("RGB")


def by_pillow(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Return what plain Pillow makes of a file."""
    image = Image.open(io.BytesIO(data))
    image.load()
    pixels = converted(image).pixels
    return pixels.size, pixels.tobytes()


FRAMES: dict[str, Any] = {
    "save_all": True,
    "append_images": [photo().rotate(at) for at in range(11)],
}


@pytest.mark.parametrize(
    ("kind", "options", "note"),
    [
        ("JPEG", {"quality": 90}, None),
        ("JPEG", {"progressive": True}, None),
        ("JPEG", {"progressive": True, "subsampling": 0, "icc_profile": bytes(100_000)}, None),
        ("JPEG", {"comment": b"c" * 60_000}, None),
        ("PNG", {}, None),
        ("PNG", FRAMES, "first of 12 frames"),
        ("GIF", {}, None),
        ("GIF", FRAMES | {"comment": b"c" * 60_000}, "first of 12 frames"),
        ("WEBP", {}, None),
        ("WEBP", FRAMES, "first of 12 frames"),
        ("TIFF", {}, None),
        ("TIFF", FRAMES, "first of 12 pages"),
        ("TIFF", FRAMES | {"compression": "tiff_lzw", "big_tiff": True}, "first of 12 pages"),
        ("TIFF", {"compression": "jpeg"}, None),
        ("TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 1200}, None),
        ("TIFF", {"strip_size": 1}, None),
        ("AVIF", {"speed": 10}, None),
        ("BMP", {}, None),
        ("PPM", {}, None),
        ("QOI", {}, None),
        ("JPEG2000", {}, None),
        ("JPEG2000", {"tile_size": (64, 64), "quality_layers": [20, 5]}, None),
    ],
)
def test_pixels_and_notes_equal_plain_pillow(
    kind: str, options: dict[str, Any], note: str | None
) -> None:
    data = encode(photo(), kind, **options)
    (image,) = open_images(data)
    assert (image.size, image.pixels.tobytes()) == by_pillow(data)
    assert type(image.pixels) is Image.Image
    assert image.note == note


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_pixels_of_other_color_modes_equal_plain_pillow(mode: str) -> None:
    levels = np.arange(0, 65_536, 16, dtype=np.uint16).reshape(64, 64)
    image = Image.fromarray(levels) if mode == "I;16" else photo(64, 64).convert(mode)
    kinds = ["TIFF"] if mode == "CMYK" else ["PNG", "TIFF"]
    for kind in kinds if mode != "LA" else ["PNG"]:
        data = encode(image, kind)
        (opened,) = open_images(data)
        assert (opened.size, opened.pixels.tobytes()) == by_pillow(data)


def test_large_photo_equals_plain_pillow() -> None:
    data = encode(photo(6000, 4000), "JPEG", quality=90)
    (image,) = open_images(data)
    assert (image.size, image.pixels.tobytes()) == by_pillow(data)
    assert image.note is None


@pytest.mark.parametrize("magic", ["P1", "P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("top", [1, 254, 255, 1000, 65_535])
def test_every_netpbm_format_equals_plain_pillow(magic: str, top: int) -> None:
    random = np.random.default_rng(top)
    count = 70 * 50 * (3 if magic in ("P3", "P6") else 1)
    values = random.integers(0, top + 1, count)
    if magic == "P1":
        head, body = b"P1 # c\n70 50\n", b"".join(b"%d" % (value & 1) for value in values)
    else:
        head = magic.encode() + b"\n# c\n70 50\n%d\n" % top
        body = values.astype(np.uint8 if top < 256 else ">u2").tobytes()
    if magic in ("P2", "P3"):
        body = b" ".join(b"%d" % value for value in values) + b" # the end\n"
    (image,) = open_images(head + body)
    assert (image.size, image.pixels.tobytes()) == by_pillow(head + body)


def test_data_after_a_jpeg_is_not_counted_as_scans() -> None:
    # A video appended to a photo, as phones do, has such bytes by chance.
    data = encode(photo(), "JPEG", progressive=True)
    (image,) = open_images(data + b"\xff\xda" * 1000)
    assert image.pixels.tobytes() == by_pillow(data)[1]
    note = segment(0xFE, b"\xff\xda" * 1000)
    (image,) = open_images(data[:2] + note + data[2:])
    assert image.pixels.tobytes() == by_pillow(data)[1]


def test_already_open_image_is_checked() -> None:
    pages = encode(photo(), "TIFF", **FRAMES)
    animation = Image.open(io.BytesIO(pages))
    animation.seek(3)
    (image,) = open_images(animation)
    assert image.note == "page 4 of 12"
    assert animation.tell() == 3
    from tests.hostile.image_cases import CASES

    scans = Image.open(io.BytesIO(CASES["progressive_jpeg_of_20000_scans"].make()))
    with pytest.raises(ImageError, match="more than 100 scans"):
        open_images(scans, name="x")
    many = Image.open(io.BytesIO(CASES["tiff_of_100000_pages"].make()))
    assert open_images(many)[0].note == "first of more than 10000 pages"
