"""Files and Pillow images become upright RGB pixels, or one clear error."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
from mlx_magic.images.opening import MAX_PIXELS_DECODED, ImageInput, open_images

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(value: Any, **options: Any) -> ImageInput:
    (image,) = open_images(value, **options)
    assert image.pixels.mode == "RGB"
    return image


def two_tone(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size and whose data is one row of nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "QOI"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    image = opened(encode(two_tone(), kind))
    assert image.size == (40, 20)
    assert image.pixels.tobytes() == two_tone().tobytes()
    assert image.note is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_close_to_the_original(kind: str) -> None:
    image = opened(
        encode(two_tone(), kind, quality=95) if kind != "JPEG2000" else encode(two_tone(), kind)
    )
    off = np.abs(np.asarray(image.pixels).astype(int) - np.asarray(two_tone()).astype(int))
    assert off.mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    upright = two_tone()
    # How a camera would have stored it, so that viewers turn it upright.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = opened(encode(stored, kind, exif=exif))
    assert image.size == image.original_size == (40, 20)
    left, right = (np.asarray(image.pixels.getpixel(at)) for at in ((5, 10), (35, 10)))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]
    # What comes out is upright: given again, it is not turned again.
    assert opened(image.pixels).pixels.tobytes() == image.pixels.tobytes()


def test_pillow_image_with_exif_is_rotated_in_a_copy() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    original = Image.open(io.BytesIO(encode(two_tone(), "PNG", exif=exif)))
    image = opened(original, name="photo")
    assert image.size == (20, 40)
    assert original.size == (40, 20)
    assert image.source == "photo"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, and rightly so
def test_invalid_exif_orientation_is_ignored() -> None:
    data = encode(two_tone(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert opened(data).size == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    pixels = opened(image.convert(mode)).pixels
    assert pixels.getpixel((0, 0)) == WHITE
    assert pixels.getpixel((1, 0)) == (0, 0, 0)


def test_half_transparent_pixels_become_half_white() -> None:
    pixels = opened(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).pixels
    assert pixels.getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha_is_composited_on_white(mode: str) -> None:
    straight = Image.new("RGBA" if mode == "RGBa" else "LA", (1, 1))
    assert opened(straight.convert(mode)).pixels.getpixel((0, 0)) == WHITE


def test_transparent_palette_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        pixels = opened(encode(image, kind, transparency=0)).pixels
        assert [pixels.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]
    pixels = opened(encode(image, "PNG", transparency=b"\x00\xff")).pixels
    assert [pixels.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


@pytest.mark.parametrize(("mode", "clear", "other"), [("L", 7, 90), ("I;16", 700, 23130)])
def test_transparent_gray_level_becomes_white(mode: str, clear: int, other: int) -> None:
    image = Image.fromarray(np.array([[clear, other]], np.uint8 if mode == "L" else np.uint16))
    pixels = opened(encode(image, "PNG", transparency=clear)).pixels
    assert [pixels.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (90, 90, 90)]


def test_transparent_color_becomes_white() -> None:
    pixels = opened(encode(two_tone((2, 1)), "PNG", transparency=RED)).pixels
    assert [pixels.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_images_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    pixels = opened(encode(Image.fromarray(values), kind)).pixels
    assert np.asarray(pixels)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_32_bit_integers_and_floats_are_scaled_into_range() -> None:
    whole = Image.fromarray(np.array([[0, 51400, 65535]], np.int32))
    assert np.asarray(opened(whole).pixels)[0, :, 0].tolist() == [0, 200, 255]
    unit = Image.fromarray(np.array([[0, 0.2, 1.0]], np.float32))
    assert np.asarray(opened(unit).pixels)[0, :, 0].tolist() == [0, 51, 255]
    wide = opened(Image.fromarray(np.array([[-100, -60, 155]], np.float32)))
    assert np.asarray(wide.pixels)[0, :, 0].tolist() == [0, 40, 255]
    assert wide.note == "values -100 to 155 stretched to black to white"
    nothing = opened(Image.fromarray(np.array([[np.nan]], np.float32)))
    assert nothing.note == "1 NaN shown as black"


def test_cmyk_from_a_jpeg_has_the_right_colors() -> None:
    pixels = opened(encode(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG")).pixels
    red, green, blue = np.asarray(pixels)[8, 8]
    assert red > 230 > 30 > max(green, blue)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_every_other_mode_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (3, 3), WHITE)
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (3, 3), level) for level in (255, 0, 0)])
        image = Image.frombytes("LAB", (3, 3), bytes([255, 0, 0]) * 9)
    else:
        image = white.convert(mode)
    assert min(np.asarray(opened(image).pixels).ravel()) >= 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_uses_the_first_frame_and_notes_it(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    data = encode(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=50,
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    image = opened(data)
    assert image.note == "first of 3 frames"
    assert image.pixels.getpixel((4, 4)) == RED


def test_tiff_uses_the_first_page_and_notes_it() -> None:
    data = encode(two_tone(), "TIFF", save_all=True, append_images=[two_tone()])
    assert opened(data).note == "first of 2 pages"


def test_pillow_animation_keeps_its_current_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    animation = Image.open(
        io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    )
    animation.seek(1)
    image = opened(animation)
    assert image.note == "frame 2 of 3"
    assert image.pixels.getpixel((4, 4)) == BLUE
    assert animation.tell() == 1


def test_photo_with_a_depth_map_is_not_an_animation() -> None:
    data = encode(two_tone(), "MPO", save_all=True, append_images=[two_tone()])
    assert opened(data).note is None
    assert opened(Image.open(io.BytesIO(data))).note is None


def test_decompression_bomb_is_refused_from_its_header() -> None:
    # 20 gigapixels in 130 bytes; Pillow itself would warn or raise by its own limit.
    for width, height in ((8001, 8000), (10_000, 10_000), (200_000, 100_000)):
        with pytest.raises(ImageTooLargeError, match="megapixels; the limit is 64") as caught:
            open_images(png(width, height), name="bomb")
        assert (caught.value.size, caught.value.limit) == (width * height, MAX_PIXELS_DECODED)
        assert caught.value.source == "bomb"


def test_decompression_bomb_in_a_later_block_is_refused() -> None:
    # The screen is 4x4, the frame on it claims 60000x60000: Pillow's own limit finds that.
    data = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b"\x2c") + 5
    data[at : at + 4] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(ImageTooLargeError, match="unpacks to 3600 megapixels; the") as caught:
        open_images(bytes(data), name="bomb")
    assert caught.value.size == 3_600_000_000


def test_a_pillow_image_that_is_too_large_is_refused_before_it_is_loaded() -> None:
    class Huge(Image.Image):
        @property
        def size(self) -> tuple[int, int]:
            return (9000, 9000)

        def load(self) -> Any:
            raise AssertionError("loaded")

    with pytest.raises(ImageTooLargeError, match="9000x9000, 81 megapixels"):
        open_images(Huge())


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]
)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(ImageDecodeError) as caught:
        open_images(data[: int(len(data) * kept)], name="cut")
    assert str(caught.value).startswith("cut cannot be decoded as ")
    assert "damaged or cut short" in str(caught.value)


def test_a_corrupt_png_is_refused() -> None:
    data = bytearray(encode(two_tone(), "PNG"))
    data[60] ^= 0xFF
    with pytest.raises(ImageDecodeError, match=r"x cannot be decoded as PNG: it is damaged"):
        open_images(bytes(data), name="x")


def _opened(kind: str, folder: Path) -> tuple[Path, Image.Image]:
    path = folder / f"image.{kind.lower()}"
    path.write_bytes(encode(two_tone(), kind))
    return path, Image.open(path)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "JPEG", "WEBP"])
def test_closed_pillow_image_is_refused_as_closed(kind: str, tmp_path: Path) -> None:
    _, image = _opened(kind, tmp_path)
    image.close()
    _, loaded = _opened(kind, tmp_path)
    loaded.load()
    loaded.close()
    path, left = _opened(kind, tmp_path)
    with left:
        pass
    with path.open("rb") as file:
        of_closed_file = Image.open(file)
    for closed in (image, loaded, left, of_closed_file):
        with pytest.raises(ImageDecodeError, match=r"^img is closed: ask before"):
            open_images(closed, name="img")
    created = two_tone()
    created.close()
    with pytest.raises(ImageDecodeError, match=r"^img is closed: ask before"):
        open_images(created, name="img")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "JPEG", "WEBP"])
def test_pillow_image_loaded_before_its_file_was_closed_is_used(kind: str, tmp_path: Path) -> None:
    _, image = _opened(kind, tmp_path)
    with image:
        image.load()
    [found] = open_images(image, name="img")
    assert found.size == image.size


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageDecodeError, match="img is 0x5: it has no pixels"):
        open_images(Image.new("RGB", (0, 5)), name="img")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n", "is a text file, not an image"),
        ("Grüße".encode() * 200, "is a text file, not an image"),
        ("täxt".encode("utf-16"), "is a text file, not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing.*Export it as a PNG"),
        (b"<?xml version='1.0'?><svg/>", "SVG drawing"),
        (b"<!DOCTYPE html><p>", "web page"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF document.*Export the page as a PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"\x93NUMPY\x01\0", "np.load"),
        (b"\x00\x00\x01\x00\x01\x00", "icon"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(range(200, 256)), "not an image of a supported format. Supported are PNG, JPEG"),
    ],
)
def test_error_names_the_content_type_that_is_not_an_image(data: bytes, words: str) -> None:
    with pytest.raises(ImageDecodeError, match=words) as caught:
        open_images(data, name="x")
    assert "\n" not in str(caught.value)
    assert caught.value.source == "x"


HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def heic(size: tuple[int, int] = (40, 20), **options: Any) -> bytes:
    """Return a HEIC file of the two-tone image."""
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(two_tone(size)).save(buffer, quality=90, **options)
    return buffer.getvalue()


def test_heic_needs_one_command_where_its_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageDecodeError) as caught:
        open_images(HEIC_START, name="IMG_1.HEIC")
    assert str(caught.value) == (
        "IMG_1.HEIC is a HEIC/HEIF image, which needs one more package: pip install pillow-heif"
    )


def test_heic_is_decoded() -> None:
    data = heic((64, 32))
    (image,) = open_images(data, name="IMG_1.HEIC")
    assert image.size == (64, 32)
    left, right = (np.asarray(image.pixels.getpixel(at)) for at in ((8, 16), (56, 16)))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


def test_heic_that_was_turned_by_the_camera_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(heic((64, 32), exif=exif.tobytes()))
    plain = opened(heic((64, 32)))
    assert image.size == plain.size[::-1]


def test_heic_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = heic((64, 64))
    at = data.index(b"ispe")
    huge = data[: at + 8] + struct.pack(">II", 30_000, 30_000) + data[at + 16 :]
    with pytest.raises(ImageTooLargeError, match="30000x30000, 900 megapixels"):
        open_images(huge)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_damaged_heic_is_refused(keep: float) -> None:
    data = heic((256, 256))
    with pytest.raises(ImageError) as caught:
        open_images(data[: int(len(data) * keep)])
    assert "\n" not in str(caught.value)


def test_heic_without_a_size_is_refused() -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageDecodeError, match="does not say the size"):
        open_images(HEIC_START)


def test_pillow_image_turned_by_hand_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    original = Image.open(io.BytesIO(encode(two_tone(), "JPEG", exif=exif)))
    by_hand = original.rotate(-90, expand=True)
    assert by_hand.getexif()[0x0112] == 6
    image = opened(by_hand)
    assert image.pixels.tobytes() == by_hand.tobytes()
    assert image.note == "not turned: EXIF orientation 6 is left from the file it was made of"
    assert opened(original).note == "turned upright (EXIF orientation 6)"


def test_heic_is_decoded_if_its_plugin_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda file, name: two_tone(), None))
    assert opened(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").size == (40, 20)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_raise_only_image_errors(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        open_images(data)
    assert "\n" not in str(caught.value)


_SAMPLES = [
    encode(two_tone((12, 8)), kind)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(_SAMPLES), st.data())
def test_damaged_images_open_or_raise_an_image_error(sample: bytes, data: st.DataObject) -> None:
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    refused, pixels = "", 0
    try:
        width, height = opened(bytes(damaged)).size
        pixels = width * height
    except ImageError as error:
        refused = str(error)
    assert bool(pixels) != bool(refused)
    assert "\n" not in refused
    assert pixels <= MAX_PIXELS_DECODED


def test_decoding_changes_no_global_pillow_state(tmp_path: Path) -> None:
    from PIL import ImageFile

    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    opened(encode(two_tone(), "PNG"))
    with pytest.raises(ImageError):
        open_images(png(100_000, 100_000))
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert after == before
