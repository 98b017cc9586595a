"""Hostile image files, each made on demand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

CASES: dict[str, Case] = {}
"""By name."""


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it.

    Attributes
    ----------
    make : callable
        Makes the file.
    says : str or None
        What its error's line must hold; None where it opens.
    note : str or None
        The note of an image that opens.
    """

    make: Callable[[], bytes]
    says: str | None = None
    note: str | None = None


Make = Callable[[], bytes]


def case(says: str | None = None, note: str | None = None) -> Callable[[Make], Make]:
    """Make a function's result a case, under the function's name."""

    def add(make: Callable[[], bytes]) -> Callable[[], bytes]:
        CASES[make.__name__] = Case(make, says, note)
        return make

    return add


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *before: bytes, rows: bytes | None = None) -> bytes:
    """Return a gray PNG of zeros, with chunks before its pixels."""
    if rows is None:
        squeeze = zlib.compressobj(9)
        rows = b"".join(squeeze.compress(bytes(width + 1)) for _ in range(height))
        rows += squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(before)
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def scans(width: int, height: int, count: int, *, frame: int = 0xC2) -> bytes:
    """Return a gray JPEG of so many refinement scans, each of a few bytes.

    Its first scan is whole: a bit for each block.
    """
    table = bytes(64 * [1])
    huffman = bytes([1] + [0] * 15) + b"\0"
    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + table),
        segment(frame, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
        segment(0xC4, b"\0" + huffman),
        segment(0xC4, b"\x10" + huffman),
        segment(0xDA, b"\x01\x01\x00\x00\x00\x0d"),
        bytes(-(-width // 8) * -(-height // 8) // 8 + 8),
    ]
    scan = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + bytes(8)
    return b"".join([*parts, scan * count, b"\xff\xd9"])


@case("more than 100 scans")
def progressive_jpeg_of_20000_scans() -> bytes:
    return scans(8000, 8000, 20_000)


@case("more than 100 scans")
def progressive_jpeg_of_101_refinements_on_64_megapixels() -> bytes:
    return scans(8000, 8000, 101)


@case()
def progressive_jpeg_of_99_scans_is_within_the_limit() -> bytes:
    return scans(4000, 4000, 99)


@case("more than 100 scans")
def jpeg_with_a_false_end_inside_of_a_comment() -> bytes:
    data = scans(8000, 8000, 5_000)
    at = data.index(b"\xff\xda")
    at = data.index(b"\xff\xda", at + 2)
    return data[:at] + segment(0xFE, b"\xff\xd9" * 4) + data[at:]


@case("more than 100 scans")
def arithmetic_jpeg_of_many_scans() -> bytes:
    return scans(8000, 8000, 5_000, frame=0xCA)


@case("takes more than 500 MB to decode")
def progressive_jpeg_whose_coefficients_fill_memory() -> bytes:
    parts = b"".join(bytes([each, 0x11, 0]) for each in (1, 2, 3, 4))
    frame = segment(0xC2, struct.pack(">BHHB", 8, 8000, 8000, 4) + parts)
    return b"\xff\xd8" + frame + segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(50)


@case("too many small pieces")
def jpeg_of_a_million_empty_comments() -> bytes:
    return b"\xff\xd8" + segment(0xFE, b"") * 1_000_000 + scans(8, 8, 1)[2:]


@case("cannot be decoded as JPEG")
def jpeg_that_ends_in_its_header() -> bytes:
    return encode(Image.new("RGB", (9, 9)), "JPEG")[:200]


@case("takes more than 500 MB to decode")
def jpeg_of_four_gigapixels() -> bytes:
    return scans(65_500, 65_500, 1)


@case()
def jpeg_with_200_exif_segments() -> bytes:
    data = encode(Image.new("RGB", (9, 9)), "JPEG")
    return data[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + bytes(60_000)) * 200 + data[2:]


@case()
def jpeg_whose_exif_leads_back_to_itself() -> bytes:
    tag = struct.pack(">HHII", 0x8769, 4, 1, 8)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + tag + struct.pack(">I", 8)
    data = encode(Image.new("RGB", (9, 9)), "JPEG")
    return data[:2] + segment(0xE1, exif) + data[2:]


@case()
def jpeg_with_a_broken_color_profile() -> bytes:
    return encode(Image.new("RGB", (9, 9)), "JPEG", icc_profile=b"\xff" * 200_000)


# PNG


@case("cannot be decoded as PNG")
def png_with_texts_of_100_megabytes() -> bytes:
    body = zlib.compress(bytes(1_000_000), 9)
    return png(4, 4, *[chunk(b"zTXt", b"k%d\0\0" % at + body) for at in range(100)])


@case("cannot be decoded as PNG")
def png_with_a_text_of_100_megabytes() -> bytes:
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(1 << 22)) for _ in range(25)) + squeeze.flush()
    return png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + body))


@case("cannot be decoded as PNG")
def png_with_a_color_profile_of_60_megabytes() -> bytes:
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(60)) + squeeze.flush()
    return png(4, 4, chunk(b"iCCP", b"p\0\0" + body))


@case("too many small pieces")
def png_of_half_a_million_empty_chunks() -> bytes:
    return png(4, 4, chunk(b"prVt", b"") * 500_000)


@case("too many small pieces")
def png_of_half_a_million_empty_pixel_chunks() -> bytes:
    return png(4, 4, chunk(b"IDAT", b"") * 500_000)


@case("the limit is 64")
def png_of_20_gigapixels() -> bytes:
    return png(200_000, 100_000, rows=zlib.compress(bytes(64)))


@case()
def png_of_64_megapixels_in_60_kilobytes() -> bytes:
    return png(8000, 8000)


@case(note="first of 100001 frames")
def apng_of_100000_frames() -> bytes:
    return png(4, 4, chunk(b"acTL", struct.pack(">II", 100_000, 0)))


@case("cannot be decoded as PNG")
def png_whose_pixels_are_missing() -> bytes:
    return png(4000, 4000, rows=zlib.compress(bytes(64)))


# GIF


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    """Return a GIF with two colors and these blocks."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
        + b"".join(blocks) + b";"
    )  # fmt: skip


FRAME = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\x00"
"""One pixel."""


@case(note="first of more than 10000 frames")
def gif_of_100000_frames() -> bytes:
    return gif(1, 1, FRAME * 100_000)


@case()
def gif_of_one_pixel_on_64_megapixels() -> bytes:
    return gif(8000, 8000, FRAME)


@case("the limit is 64")
def gif_of_four_gigapixels() -> bytes:
    return gif(65_535, 65_535, FRAME)


@case("1 MB of extensions")
def gif_with_a_comment_of_a_million_pieces() -> bytes:
    return gif(1, 1, b"!\xfe" + b"\x01x" * 1_000_000 + b"\0", FRAME)


@case("more than 10000 comments")
def gif_with_a_million_comments() -> bytes:
    return gif(1, 1, b"!\xfe\x01x\0" * 300_000, FRAME)


@case("cannot be decoded as GIF")
def gif_without_a_frame() -> bytes:
    return gif(9, 9)


# TIFF


def ifd(tags: dict[int, tuple[int, int, int]], following: int, order: str = "<") -> bytes:
    """Return a directory: tag -> type, count, value."""
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "HH", value, 0) if (kind, count) == (3, 1)
           else struct.pack(order + "I", value))
        for tag, (kind, count, value) in sorted(tags.items())
    )  # fmt: skip
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following)


def grey(at: int, width: int = 1, height: int = 1) -> dict[int, tuple[int, int, int]]:
    """Return the tags of a gray page whose pixels are at a place."""
    return {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, at), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height),
    }  # fmt: skip


@case(note="first of more than 10000 pages")
def tiff_of_100000_pages() -> bytes:
    size = len(ifd(grey(8), 0))
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + b"".join(
        ifd(grey(8), 12 + size * (page + 1) if page < 99_999 else 0) for page in range(100_000)
    )  # fmt: skip


@case(note="first of 2 pages")
def tiff_whose_pages_lead_back_to_the_first() -> bytes:
    size = len(ifd(grey(8), 0))
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + ifd(grey(8), 12 + size) + ifd(grey(8), 12)


@case("cannot be decoded as TIFF")
def tiff_whose_next_page_is_outside() -> bytes:
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + ifd(grey(8), 4_000_000_000)


@case("has 2750000 values")
def tiff_with_millions_of_strips() -> bytes:
    tags = grey(8) | {273: (4, 2_750_000, 12)}
    return b"II*\0" + struct.pack("<I", 11_000_012) + bytes(11_000_004) + ifd(tags, 0)


@case("has 1400000 values")
def tiff_with_millions_of_fractions() -> bytes:
    tags = grey(8) | {282: (5, 1_400_000, 12)}
    return b"II*\0" + struct.pack("<I", 11_200_012) + bytes(11_200_004) + ifd(tags, 0)


@case("has 65535 tags")
def tiff_with_65535_tags_of_the_same_bytes() -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 1, 10_000_000, 8) for tag in range(65_535))
    directory = struct.pack("<H", 65_535) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 10_000_008) + bytes(10_000_000) + directory


@case("tiles are far larger than the image")
def tiff_of_a_tile_of_four_gigapixels() -> bytes:
    tags = grey(8, 10, 10)
    del tags[273], tags[278], tags[279]
    tags |= {259: (3, 1, 5), 322: (4, 1, 65_536), 323: (4, 1, 65_536), 324: (4, 1, 8),
             325: (4, 1, 100)}  # fmt: skip
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + ifd(tags, 0)


@case("a JPEG of more than 100 scans in it")
def tiff_with_a_jpeg_of_20000_scans() -> bytes:
    data = scans(8000, 8000, 20_000)
    tags = grey(12, 8000, 8000) | {259: (3, 1, 7), 279: (4, 1, len(data))}
    return b"II*\0" + struct.pack("<I", 12 + len(data)) + bytes(4) + data + ifd(tags, 0)


@case("parts overlap")
def tiff_of_strips_that_are_all_the_same_ten_megabytes() -> bytes:
    tags = grey(8, 8000, 8000) | {
        259: (3, 1, 8), 278: (4, 1, 1), 273: (4, 8000, 12), 279: (4, 8000, 32_012),
    }  # fmt: skip
    body = struct.pack("<8000I", *[8] * 8000) + struct.pack("<8000I", *[10_000_000] * 8000)
    return (
        b"II*\0"
        + struct.pack("<I", 10_064_012)
        + bytes(4)
        + body
        + bytes(10_000_000)
        + ifd(tags, 0)
    )


@case()
def tiff_of_64_megapixels_in_60_kilobytes() -> bytes:
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(62)) + squeeze.flush()
    tags = grey(12, 8000, 8000) | {259: (3, 1, 8), 279: (4, 1, len(body))}
    return b"II*\0" + struct.pack("<I", 12 + len(body)) + bytes(4) + body + ifd(tags, 0)


@case("cannot be decoded as TIFF")
def big_tiff_with_a_directory_of_a_billion_tags() -> bytes:
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 30) + bytes(200)


@case("the limit is 64")
def tiff_of_four_gigapixels() -> bytes:
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + ifd(grey(8, 65_000, 65_000), 0)


@case("cannot be decoded as TIFF")
def tiff_whose_first_page_is_nowhere() -> bytes:
    return b"MM\0*\xff\xff\xff\xff" + bytes(50)


# JPEG 2000, WebP, AVIF


@case("components in")
def jpeg2000_of_16384_components() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True))
    data[4 + 36 : 4 + 38] = struct.pack(">H", 16_384)
    data[8:16] = data[24:32] = struct.pack(">II", 4000, 4000)
    return bytes(data)


@case("the limit is 64")
def jpeg2000_whose_codestream_is_larger_than_its_box_says() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(data)


@case("tiles")
def jpeg2000_of_64_million_tiles() -> bytes:
    data = bytearray(encode(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True))
    data[8:16] = struct.pack(">II", 8000, 8000)
    data[24:32] = struct.pack(">II", 1, 1)
    return bytes(data)


@case("JPEG 2000")
def jpeg2000_of_65535_layers() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x52")
    data[at + 6 : at + 8] = struct.pack(">H", 65_535)
    return bytes(data[: len(data) // 2])


# HEIC, which pillow-heif writes and reads


def heic(*sizes: tuple[int, int]) -> bytes:
    """Return a HEIC file with an image of each size."""
    import pillow_heif

    file = pillow_heif.from_pillow(Image.linear_gradient("L").resize(sizes[0]).convert("RGB"))
    for size in sizes[1:]:
        file.add_from_pillow(Image.new("RGB", size, "red"))
    buffer = io.BytesIO()
    file.save(buffer, quality=50)
    return buffer.getvalue()


def heic_that_says(width: int, height: int, data: bytes) -> bytes:
    """Return a HEIC file whose header declares another size."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def heic_with(box: bytes, offset: int, value: bytes) -> bytes:
    """Return a HEIC file with other bytes at an offset in a box."""
    data = heic((64, 48))
    at = data.index(box) + offset
    return data[:at] + value + data[at + len(value) :]


@case("cannot be decoded as HEIF")
def heic_that_is_cut_short() -> bytes:
    data = heic((64, 48))
    return data[: len(data) - 50]


@case("does not say the size")
def heic_that_ends_in_its_header() -> bytes:
    return heic((64, 48))[:120]


@case("the limit is 64")
def heic_of_900_megapixels() -> bytes:
    return heic_that_says(30_000, 30_000, heic((64, 48)))


@case("cannot be decoded as HEIF")
def heic_without_pixels() -> bytes:
    return heic_that_says(0, 0, heic((64, 48)))


@case("cannot be decoded as HEIF")
def heic_whose_header_says_49_megapixels() -> bytes:
    return heic_that_says(7000, 7000, heic((64, 48)))


@case("cannot be decoded as HEIF")
def heic_that_is_larger_than_its_header_says() -> bytes:
    return heic_that_says(64, 48, heic((1500, 1500)))


@case(note="the main one of 20 images")
def heic_of_20_images() -> bytes:
    return heic(*[(64, 48)] * 20)


@case("the limit is 64")
def heic_whose_second_image_is_huge() -> bytes:
    data = heic((64, 48), (32, 32))
    at = data.rindex(b"ispe") + 8
    return data[:at] + struct.pack(">II", 60_000, 60_000) + data[at + 8 :]


@case("cannot be decoded as HEIF")
def heic_of_65535_items() -> bytes:
    return heic_with(b"iinf", 8, b"\xff\xff")


@case("cannot be decoded as HEIF")
def heic_whose_image_is_outside_of_the_file() -> bytes:
    return heic_with(b"iloc", 16, b"\xff\xff\xff\xff")


@case("cannot be decoded as HEIF")
def heic_of_65535_pieces() -> bytes:
    return heic_with(b"iloc", 20, b"\xff\xff")


@case("too many boxes")
def heic_of_200000_empty_boxes() -> bytes:
    data = heic((64, 48))
    return data[:28] + struct.pack(">I4s", 8, b"free") * 200_000 + data[28:]


@case("cannot be decoded as HEIF")
def heic_in_a_box_without_end() -> bytes:
    return heic_with(b"meta", -4, struct.pack(">I", 1))


@case("cannot be decoded as HEIF")
def heic_in_boxes_inside_of_boxes() -> bytes:
    data = heic((64, 48))
    nested = data[28:]
    for _ in range(5_000):
        nested = struct.pack(">I4s", len(nested) + 8, b"moov") + nested
    return data[:28] + nested


def webp_canvas(width: int, height: int) -> bytes:
    """Return an animated WebP whose only frame is a pixel."""
    body = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM\x06\0\0\0" + bytes(6)
    frame = bytes(6) + bytes(6) + bytes(4) + body
    extended += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + extended


@case("the limit is 64")
def webp_of_a_giant_canvas_around_a_pixel() -> bytes:
    return webp_canvas(16_383, 16_383)


@case()
def webp_of_a_30_megapixel_canvas_around_a_pixel() -> bytes:
    return webp_canvas(6000, 5000)


@case("takes more than 500 MB to decode")
def webp_of_64_megapixels_in_a_few_kilobytes() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 7999 | 7999 << 14)
    return bytes(data)


@case("takes more than 500 MB to decode")
def webp_of_a_64_megapixel_canvas_around_a_pixel() -> bytes:
    return webp_canvas(8000, 8000)


@case(note="first of 20000 frames")
def webp_of_20000_frames() -> bytes:
    body = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    extended = (
        b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + bytes(6) + b"ANIM\x06\0\0\0" + bytes(6)
    )
    frame = bytes(16) + body
    extended += (b"ANMF" + struct.pack("<I", len(frame)) + frame) * 20_000
    return b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + extended


@case("takes more than 500 MB to decode")
def avif_of_64_megapixels_in_a_few_kilobytes() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 8000, 8000)
    return bytes(data)


@case()
def avif_that_says_it_is_small_and_is_not() -> bytes:
    """As in a browser, it is shown in the size that it says."""
    data = bytearray(encode(Image.new("RGB", (9000, 9000)), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 64)
    return bytes(data)


@case("cannot be decoded as AVIF")
def avif_of_nothing_but_boxes() -> bytes:
    return b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + struct.pack(">I4s", 8, b"free") * 200_000


# PPM, BMP, QOI


@case()
def plain_ppm_of_24_megabytes() -> bytes:
    return b"P3 2000 2000 255\n" + b"1 2 3 " * 4_000_000


@case("cannot be decoded as PPM")
def plain_ppm_of_100_megabytes_of_comments() -> bytes:
    return b"P3 9 9 255\n" + b"# nothing\n" * 10_000_000


@case("cannot be decoded as PPM")
def ppm_with_a_header_of_50_megabytes() -> bytes:
    return b"P6 #" + b"x" * 50_000_000 + b"\n9 9 255\n" + bytes(300)


@case("cannot be decoded as PPM")
def ppm_of_spaces() -> bytes:
    return b"P3" + b" " * 20_000_000


@case()
def ppm_with_an_odd_highest_value() -> bytes:
    return b"P6 3000 3000 254\n" + bytes(27_000_000)


@case("cannot be decoded as PPM")
def ppm_of_numbers_that_are_too_long() -> bytes:
    return b"P2 9 9 255\n" + b"9" * 20_000_000


@case("the limit is 64")
def ppm_of_gigapixels() -> bytes:
    return b"P3 99999 99999 255\n1 2 3"


@case("cannot be decoded as BMP")
def bmp_that_is_larger_than_it_has_bytes() -> bytes:
    data = bytearray(encode(Image.new("RGB", (4, 4)), "BMP"))
    data[18:26] = struct.pack("<ii", 8000, 8000)
    return bytes(data)


@case("cannot be decoded as BMP")
def bmp_whose_runs_go_nowhere() -> bytes:
    header = b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0,
                                 256, 0)  # fmt: skip
    return header + bytes(1024) + b"\0\x02\0\0" * 200_000


@case()
def qoi_of_64_megapixels_in_a_megabyte() -> bytes:
    return b"qoif" + struct.pack(">IIBB", 8000, 8000, 3, 0) + b"\xfd" * 1_040_000 + bytes(8)


@case("the limit is 64")
def qoi_of_gigapixels() -> bytes:
    return b"qoif" + struct.pack(">IIBB", 1 << 30, 1 << 30, 4, 0)


# What declares far more pixels than it can hold


def _enlarged(at: int, pattern: str, data: bytes, *sides: int) -> bytes:
    """Return a file whose header has other sides."""
    changed = bytearray(data)
    struct.pack_into(pattern, changed, at, *(sides or (8000, 8000)))
    return bytes(changed)


def _tiny(mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), 1 if mode == "1" else "red" if mode == "RGB" else 9)


def _tags(data: bytes, **changes: tuple[int, int, int]) -> bytes:
    """Return a TIFF of Pillow's with other tags, like ``t256=(type, count, value)``."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for start in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, start)
        if f"t{tag}" in changes:
            struct.pack_into("<HHII", changed, start, tag, *changes[f"t{tag}"])
    return bytes(changed)


_64_MEGAPIXELS = {"t256": (4, 1, 8000), "t257": (4, 1, 8000), "t278": (4, 1, 8000)}


@case("truncated")
def jpeg_of_64_megapixels_in_631_bytes() -> bytes:
    data = encode(_tiny(), "JPEG")
    return _enlarged(data.index(b"\xff\xc0") + 5, ">HH", data)


@case("truncated")
def grey_jpeg_of_64_megapixels_in_a_few_bytes() -> bytes:
    data = encode(_tiny("L"), "JPEG", optimize=True)
    return _enlarged(data.index(b"\xff\xc0") + 5, ">HH", data)


@case("truncated")
def progressive_jpeg_of_64_megapixels_in_a_few_bytes() -> bytes:
    data = encode(_tiny(), "JPEG", progressive=True)
    return _enlarged(data.index(b"\xff\xc2") + 5, ">HH", data)


@case("truncated")
def progressive_jpeg_of_64_megapixels_without_its_first_scan() -> bytes:
    data = encode(_tiny(), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    data = data[:first] + data[data.index(b"\xff\xc4", first) :]
    return _enlarged(data.index(b"\xff\xc2") + 5, ">HH", data)


@case("truncated")
def jpeg_of_64_megapixels_before_half_a_megabyte_of_something_else() -> bytes:
    return jpeg_of_64_megapixels_in_631_bytes() + bytes(500_000)


@case("truncated")
def jpeg_of_64_megapixels_behind_half_a_megabyte_of_notes() -> bytes:
    data = jpeg_of_64_megapixels_in_631_bytes()
    return data[:2] + segment(0xFE, bytes(60_000)) * 9 + data[2:]


@case("truncated")
def png_of_64_megapixels_in_80_bytes() -> bytes:
    return png(8000, 8000, rows=zlib.compress(bytes(64)))


@case("truncated")
def png_of_64_megapixels_behind_a_chunk_of_something_else() -> bytes:
    data = png_of_64_megapixels_in_80_bytes()
    return data[:8] + chunk(b"prVt", bytes(200_000)) + data[8:]


@case("truncated")
def gif_of_64_megapixels_in_50_bytes() -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 8000, 8000, 0) + b"\x02\x02D\x01\x00"
    return gif(8000, 8000, frame)


@case("truncated")
def tiff_of_64_megapixels_in_a_few_bytes() -> bytes:
    return _tags(encode(_tiny(), "TIFF"), **_64_MEGAPIXELS)


@case("strips or tiles")
def tiff_of_64_megapixels_with_one_strip_of_eight_rows() -> bytes:
    return _tags(encode(_tiny(), "TIFF"), t256=(4, 1, 8000), t257=(4, 1, 8000))


def _compressed(kind: str, mode: str = "RGB") -> None:
    @case("truncated")
    def made() -> bytes:
        return _tags(encode(_tiny(mode), "TIFF", compression=kind), **_64_MEGAPIXELS)

    CASES[f"tiff_of_64_megapixels_in_a_few_bytes_of_{kind}"] = CASES.pop("made")


for _kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
    _compressed(_kind)
_compressed("group4", "1")


@case("truncated")
def bmp_of_64_megapixels_upside_down_in_246_bytes() -> bytes:
    return _enlarged(18, "<ii", encode(_tiny(), "BMP"), 8000, -8000)


@case("truncated")
def ppm_of_64_megapixels_in_600_bytes() -> bytes:
    return b"P6 8000 8000 255\n" + bytes(600)


@case("truncated")
def plain_pbm_of_64_megapixels_in_600_bytes() -> bytes:
    return b"P1 8000 8000\n" + b"1" * 600


@case("truncated")
def qoi_of_64_megapixels_in_600_bytes() -> bytes:
    return b"qoif" + struct.pack(">IIBB", 8000, 8000, 3, 0) + b"\xfd" * 600


@case("truncated")
def webp_of_30_megapixels_in_a_few_bytes() -> bytes:
    data = encode(_tiny(), "WEBP")
    return _enlarged(data.index(b"\x9d\x01\x2a") + 3, "<HH", data, 6000, 5000)


@case("truncated")
def jpeg2000_of_64_megapixels_in_15625_tiles_that_are_not_there() -> bytes:
    data = encode(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True)
    return _enlarged(8, ">II", data)


# Ordinary files that are as small as their format allows


@case()
def jpeg_of_64_megapixels_of_one_color() -> bytes:
    return encode(Image.new("RGB", (8000, 8000), "red"), "JPEG", optimize=True)


@case()
def progressive_jpeg_of_30_megapixels_of_one_color() -> bytes:
    image = Image.new("RGB", (6000, 5000), "red")
    return encode(image, "JPEG", optimize=True, progressive=True)


@case()
def gif_of_64_megapixels_of_one_color() -> bytes:
    return encode(Image.new("L", (8000, 8000), 9), "GIF")


@case()
def webp_of_30_megapixels_of_one_color() -> bytes:
    return encode(Image.new("RGB", (6000, 5000), "red"), "WEBP", quality=1, method=0)


@case()
def lossless_webp_of_16_megapixels_of_one_color() -> bytes:
    return encode(Image.new("RGB", (4000, 4000), "red"), "WEBP", lossless=True, quality=1)


def _honest_tiff(kind: str, mode: str = "L") -> None:
    @case()
    def made() -> bytes:
        return encode(Image.new(mode, (8000, 8000), 9), "TIFF", compression=kind)

    CASES[f"tiff_of_64_megapixels_of_one_color_by_{kind}"] = CASES.pop("made")


for _kind in ("tiff_lzw", "packbits", "jpeg", "zstd"):
    _honest_tiff(_kind)
_honest_tiff("group4", "1")


# Files that make libraries write to standard error

_HONEST = Image.linear_gradient("L").convert("RGB")


def _added(data: bytes, *tags: tuple[int, int, int, int]) -> bytes:
    """Return a TIFF of Pillow's with further tags, in the order given."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = data[at + 2 : at + 2 + 12 * count] + b"".join(
        struct.pack("<HHII", *each) for each in tags
    )
    directory = struct.pack("<H", count + len(tags)) + entries + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def _damaged(kind: str, mode: str = "RGB") -> bytes:
    data = bytearray(encode(_HONEST.convert(mode), "TIFF", compression=kind))
    tags: Any = Image.open(io.BytesIO(data)).tag_v2  # type: ignore[attr-defined]
    for offset, size in zip(tags[273], tags[279], strict=True):
        for at in range(offset + size // 4, offset + size, 7):
            data[at] ^= 0x5A
    return bytes(data)


@case()
def tiff_with_tags_that_nobody_knows() -> bytes:
    data = encode(_HONEST, "TIFF", compression="tiff_lzw")
    return _added(data, (65_000, 3, 1, 1), (60_000, 2, 4, 1), (61_000, 99, 1, 1))


@case()
def tiff_with_tags_of_another_type_and_length() -> bytes:
    data = encode(_HONEST, "TIFF", compression="tiff_lzw")
    return _added(data, (305, 4, 1, 7), (306, 2, 4, 7), (296, 3, 2, 0x10001), (269, 7, 3, 1))


@case()
def tiff_with_two_of_a_tag_and_a_date_that_leads_outside() -> bytes:
    data = encode(_HONEST, "TIFF", compression="tiff_lzw")
    return _added(data, (305, 2, 3, 0x4141), (305, 2, 3, 0x4242), (306, 2, 90, 1 << 30))


@case("has the tag 256 twice")
def tiff_with_two_widths() -> bytes:
    return _added(encode(_HONEST, "TIFF", compression="tiff_lzw"), (256, 4, 1, 8000))


@case("cannot be decoded as TIFF")
def tiff_of_damaged_lzw() -> bytes:
    return _damaged("tiff_lzw")


@case("cannot be decoded as TIFF")
def tiff_of_damaged_deflate() -> bytes:
    return _damaged("tiff_adobe_deflate")


@case()
def tiff_of_a_damaged_jpeg() -> bytes:
    return _damaged("jpeg")


@case()
def tiff_of_a_damaged_fax() -> bytes:
    return _damaged("group3", "1")


@case("cannot be decoded as TIFF")
def tiff_whose_strips_are_not_there() -> bytes:
    data = encode(_HONEST, "TIFF", compression="packbits")
    return _tags(data, t273=(4, 1, 1 << 31), t278=(4, 1, 256), t279=(4, 1, 1 << 20))


@case("cannot be decoded as TIFF")
def tiff_of_a_hundred_values_a_pixel() -> bytes:
    return _tags(encode(_HONEST, "TIFF"), t277=(3, 1, 100))


@case()
def jpeg_whose_exif_is_cut_off() -> bytes:
    tags = b"".join(struct.pack(">HHII", tag, 2, 5_000, 60_000) for tag in (270, 271, 272))
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 9) + tags
    data = encode(_HONEST, "JPEG")
    return data[:2] + segment(0xE1, exif) + data[2:]


@case()
def jpeg_whose_exif_has_too_many_values() -> bytes:
    tags = struct.pack(">HHII", 274, 3, 2, 0x10001) + struct.pack(">HHII", 0x8769, 4, 1, 1 << 30)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + tags + bytes(4)
    data = encode(_HONEST, "JPEG")
    return data[:2] + segment(0xE1, exif) + data[2:]


@case()
def jpeg_that_claims_to_be_several_and_is_not() -> bytes:
    data = encode(_HONEST, "JPEG")
    return data[:2] + segment(0xE2, b"MPF\0MM\0*" + bytes(40)) + data[2:]


@case()
def png_of_an_animation_without_frames() -> bytes:
    return png(4, 4, chunk(b"acTL", bytes(8)))


@case()
def png_with_a_palette_and_transparency_in_bytes() -> bytes:
    image = _HONEST.convert("P")
    return encode(image, "PNG", transparency=bytes(range(256)))


@case()
def png_whose_exif_is_cut_off() -> bytes:
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">HHHII", 5, 270, 2, 5_000, 60_000)
    return png(4, 4, chunk(b"eXIf", exif))


@case()
def webp_whose_exif_is_cut_off() -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 5, 270, 2, 5_000, 60_000)
    return encode(_HONEST, "WEBP", exif=exif)


@case("cannot be decoded as AVIF")
def avif_whose_pixels_are_damaged() -> bytes:
    data = bytearray(encode(_HONEST, "AVIF", speed=10))
    at = data.index(b"mdat") + 12
    data[at:] = bytes(byte ^ 0xA5 for byte in data[at:])
    return bytes(data)


_NAMES = list(CASES)
LARGE: dict[str, Callable[[], Any]] = {
    "floats in Pillow": lambda: Image.new("F", (8000, 8000), 0.5),
    "floats in one row": lambda: Image.new("F", (64_000_000, 1), 0.5),
    "16 bits in Pillow": lambda: Image.new("I;16", (8000, 8000), 70),
    "floats in a TIFF": lambda: encode(
        Image.new("F", (8000, 8000), 0.5), "TIFF", compression="zstd"
    ),
    "an open TIFF of floats": lambda: Image.open(
        io.BytesIO(encode(Image.new("F", (8000, 8000), 0.5), "TIFF"))
    ),
    "float64 as one row": lambda: np.broadcast_to(np.zeros((1, 1, 1)), (1, 64_000_000, 3)),
    "a palette with alpha": lambda: Image.new("PA", (8000, 8000)),
}
"""Ordinary images of 64 megapixels, each a value that a person has."""

ODD = _NAMES[_NAMES.index("tiff_with_tags_that_nobody_knows") :]
"""Names of the cases about which libraries have something to say."""


# Files that are not images


@case("PostScript")
def postscript_that_calls_itself_an_image() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/mark) (w) file\n"


@case("not an image of a supported format")
def windows_metafile() -> bytes:
    return b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x10\0\x10\0`\0" + bytes(90)


@case("not an image of a supported format")
def dds_texture() -> bytes:
    return b"DDS |\0\0\0\x07\x10\0\0\xff\xff\0\0\xff\xff\0\0" + bytes(200)


@case("text file")
def fits_table() -> bytes:
    return b"SIMPLE  =                    T".ljust(2880)


@case("icon")
def icon_in_an_icon() -> bytes:
    return b"\0\0\1\0\1\0" + bytes(16) * 4


@case("PDF")
def pdf_that_ends_as_a_jpeg() -> bytes:
    return b"%PDF-1.7\n" + encode(Image.new("RGB", (4, 4)), "JPEG")


@case()
def jpeg_that_ends_as_a_zip() -> bytes:
    return encode(Image.new("RGB", (4, 4)), "JPEG") + b"PK\3\4" + bytes(100_000)
