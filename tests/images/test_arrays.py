"""Arrays become images by shape, type and range, or one clear error."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageSequence

from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError, RequestError
from mlx_magic.images.opening import MAX_IMAGES, open_images

SIDES = st.integers(1, 12)


def pixels(value: Any) -> np.ndarray[Any, Any]:
    (image,) = open_images(value)
    return np.asarray(image.pixels)


@settings(max_examples=60, deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([(), (1,), (3,)]))
def test_uint8_is_unchanged(
    data: st.DataObject, height: int, width: int, channels: tuple[int, ...]
) -> None:
    array = data.draw(hnp.arrays(np.uint8, (height, width, *channels)))
    seen = pixels(array)
    assert seen.shape == (height, width, 3)
    expected = array if channels == (3,) else array.reshape(height, width, 1)
    assert (seen == expected).all()


@settings(max_examples=60, deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([np.float16, np.float32, np.float64]))
def test_floats_from_0_to_1_round_to_the_nearest_level(
    data: st.DataObject, height: int, width: int, dtype: Any
) -> None:
    elements = hnp.from_dtype(np.dtype(dtype), min_value=0, max_value=1, allow_nan=False)
    array = data.draw(hnp.arrays(dtype, (height, width, 3), elements=elements))
    off = np.abs(pixels(array) - array.astype(np.float64) * 255)
    assert off.max() <= 0.5 + 1e-4


WIDE = [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
DEPTHS = (8, 10, 12, 14, 16)


def top_of(highest: int) -> int:
    """Return the largest number of the smallest depth that holds the highest value."""
    return 1 if highest <= 1 else next(2**bits - 1 for bits in DEPTHS if highest < 2**bits)


@st.composite
def wide(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Draw integers of a wide type, of any depth."""
    dtype: Any = draw(st.sampled_from(WIDE))
    top = min(2 ** draw(st.integers(0, 16)), np.iinfo(dtype).max)
    shape = draw(st.tuples(SIDES, SIDES, st.sampled_from([1, 3])))
    return draw(hnp.arrays(dtype, shape, elements=st.integers(0, min(top, 65_535))))


@settings(max_examples=100, deadline=None)
@given(wide())
def test_wide_integers_are_divided_by_the_smallest_depth_that_holds_them(
    array: np.ndarray[Any, Any],
) -> None:
    (image,) = open_images(array)
    top = top_of(int(array.max()))
    off = np.abs(np.asarray(image.pixels) - array.astype(np.float64) * 255 / top)
    assert off.max() <= 0.5 + 1e-9
    assert bool(image.note) == bool(array.max())
    if top > 1:
        assert f"0..{top} " in str(image.note)


def png_of(array: np.ndarray[Any, Any]) -> bytes:
    """Return a PNG with 16 bits a channel, which Pillow cannot write for colors."""
    height, width, bands = array.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in array.astype(">u2")))
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def tiff_of(order: str, *pages: np.ndarray[Any, Any]) -> bytes:
    """Return an uncompressed TIFF with 16 bits a channel, with a page for each array."""
    file, link = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4), 4
    for array in pages:
        height, width, bands = array.shape
        data = array.astype(f"{order}u2").tobytes()
        tags = [
            (256, "L", [width]), (257, "L", [height]), (258, "H", [16] * bands), (259, "H", [1]),
            (262, "H", [2 if bands > 2 else 1]), (273, "L", [len(file)]), (277, "H", [bands]),
            (278, "L", [height]), (279, "L", [len(data)]),
        ]  # fmt: skip
        if bands == 4:
            tags.append((338, "H", [2]))
        file += data
        struct.pack_into(f"{order}L", file, link, len(file))
        link = len(file) + 2 + 12 * len(tags)
        directory, rest = struct.pack(f"{order}H", len(tags)), b""
        for tag, code, values in tags:
            packed = struct.pack(f"{order}{len(values)}{code}", *values)
            kind = 3 if code == "H" else 4
            if len(packed) > 4:
                where, rest = struct.pack(f"{order}L", link + 4 + len(rest)), rest + packed
            else:
                where = packed.ljust(4, b"\0")
            directory += struct.pack(f"{order}HHL", tag, kind, len(values)) + where
        file += directory + bytes(4) + rest
    return bytes(file)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([1, 3, 4]), st.integers(0, 16), st.booleans())
def test_arrays_png_and_tiff_with_the_same_values_are_the_same_image(
    data: st.DataObject, bands: int, bits: int, normalize: bool
) -> None:
    shape = (data.draw(SIDES), data.draw(SIDES), bands)
    array = data.draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, 2**bits - 1)))
    (expected,) = open_images(array, normalize=normalize)
    for file in (png_of(array), tiff_of("<", array), tiff_of(">", array)):
        (image,) = open_images(file, normalize=normalize)
        assert image.digest == expected.digest
        if normalize:
            assert image.note == expected.note


def test_compressed_tiff_of_12_bits_equals_its_array() -> None:
    array = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", compression="tiff_lzw")
    assert open_images(buffer.getvalue())[0].digest == open_images(array)[0].digest


def test_pages_of_a_tiff_stay_comparable() -> None:
    dark, bright = np.full((4, 5), 200, np.uint16), np.full((4, 5), 4000, np.uint16)
    for compression in (None, "tiff_lzw"):
        buffer = io.BytesIO()
        Image.fromarray(dark).save(
            buffer,
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(bright)],
            compression=compression,
        )
        pages = Image.open(io.BytesIO(buffer.getvalue()))
        images = open_images(ImageSequence.Iterator(pages))
        assert [image.pixels.getpixel((0, 0)) for image in images] == [(12,) * 3, (249,) * 3]
        assert open_images(buffer.getvalue())[0].pixels.getpixel((0, 0)) == (12,) * 3


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bands", [3, 4])
def test_pages_of_colors_of_16_bits_stay_comparable(order: str, bands: int) -> None:
    dark, bright = (np.full((4, 5, bands), value, np.uint16) for value in (200, 4000))
    dark[..., 3:] = bright[..., 3:] = 65_535
    data = tiff_of(order, dark, bright)
    pages = Image.open(io.BytesIO(data))
    images = open_images(ImageSequence.Iterator(pages))
    assert [image.pixels.getpixel((0, 0)) for image in images] == [(12,) * 3, (249,) * 3]
    (first,) = open_images(data)
    assert first.digest == images[0].digest
    assert first.note is not None
    assert "values up to 4000 read as 0..4095 (12-bit)" in first.note


def test_pages_of_compressed_colors_stay_comparable() -> None:
    cv2: Any = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 4096, (2, 20, 30, 3)).astype(np.uint16)
    values[0] //= 16
    assert (values[1].max(), values[0].max()) > (255, 0)
    _, made = cv2.imencodemulti(".tiff", [page[..., ::-1] for page in values])
    images = open_images(ImageSequence.Iterator(Image.open(io.BytesIO(made.tobytes()))))
    expected = open_images(values)
    assert [image.digest for image in images] == [image.digest for image in expected]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 65_535), min_size=2, max_size=4), st.sampled_from([1, 3]))
def test_highest_value_of_all_pages_decides(highest: list[int], bands: int) -> None:
    pages = [np.zeros((2, 3, bands), np.uint16) for _ in highest]
    for page, value in zip(pages, highest, strict=True):
        page[1, 2, bands - 1] = value
    (image,) = open_images(tiff_of("<", *pages))
    top = top_of(max(highest))
    shown = round(highest[0] * 255 / top)
    assert abs(int(np.asarray(image.pixels)[1, 2].max()) - shown) <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("loaded", [False, True])
def test_pages_of_floats_stay_comparable(compression: str | None, loaded: bool) -> None:
    pages = [np.full((4, 5), value, np.float32) for value in (0.5, 200.0)]
    pages[1][0, 0] = np.nan
    buffer = io.BytesIO()
    first, second = map(Image.fromarray, pages)
    first.save(buffer, "TIFF", save_all=True, append_images=[second], compression=compression)
    file = Image.open(buffer)
    if loaded:
        file.load()
    (image,) = open_images(file)
    assert image.pixels.getpixel((0, 0)) in ((0,) * 3, (1,) * 3)
    assert image.note is not None
    assert "floats read as 0..255" in image.note


def test_frames_of_one_array_stay_comparable() -> None:
    stack = np.zeros((2, 4, 5), np.uint16)
    stack[0], stack[1] = 200, 4000
    for value in (stack[..., None], list(stack), iter(stack)):
        images = open_images(value)
        assert [image.pixels.getpixel((0, 0)) for image in images] == [(12,) * 3, (249,) * 3]
    apart = open_images([stack[0].copy(), stack[1].copy()])
    assert [image.pixels.getpixel((0, 0)) for image in apart] == [(200,) * 3, (249,) * 3]


@pytest.mark.parametrize("dtype", [np.int8, *WIDE])
def test_masks_of_0_and_1_are_black_and_white(dtype: Any) -> None:
    (image,) = open_images(np.array([[0, 1]], dtype))
    assert np.asarray(image.pixels)[0, :, 0].tolist() == [0, 255]
    assert image.note == "mask of 0 and 1 shown as black and white"


def test_uint8_mask_is_unchanged_and_noted() -> None:
    (image,) = open_images(np.array([[0, 1]], np.uint8))
    assert np.asarray(image.pixels)[0, :, 0].tolist() == [0, 1]
    assert image.note == "uint8 values all 0 and 1: nearly black; for a mask use x.astype(bool)"
    assert open_images(np.zeros((2, 2), np.uint8))[0].note is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", None])
def test_mask_of_8_bits_in_a_file_or_pillow_image_is_unchanged_and_noted(kind: str | None) -> None:
    mask = Image.fromarray(np.eye(6, dtype=np.uint8))
    value: Any = mask
    if kind is not None:
        value = io.BytesIO()
        mask.save(value, kind)
    (image,) = open_images(value)
    assert np.asarray(image.pixels)[..., 0].tolist() == np.eye(6).tolist()
    assert image.note is not None
    assert "8-bit values all 0 and 1: nearly black" in image.note
    assert open_images(value, normalize=False)[0].note is None
    assert open_images(Image.new("L", (3, 3), 1))[0].note is None


def test_masked_values_are_refused_with_their_number() -> None:
    masked = np.ma.masked_less(np.arange(64, dtype=np.uint8).reshape(8, 8), 10)
    with pytest.raises(ImageDecodeError, match=r"x has 10 masked values.*x\.filled\(0\)"):
        open_images(masked, name="x")
    assert pixels(masked.filled(0))[0, 0, 0] == 0
    assert pixels(np.ma.masked_less(masked.data, -1))[0, 1, 0] == 1


def test_nan_is_darkest_and_infinity_brightest_and_both_are_counted() -> None:
    values = np.array([[0.2, np.nan, 1.0, np.inf, -np.inf, np.nan]])
    tiff = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(tiff, "TIFF")
    for value in (values, Image.fromarray(values.astype(np.float32)), tiff):
        (image,) = open_images(value)
        assert np.asarray(image.pixels)[0, :, 0].tolist() == [51, 0, 255, 255, 0, 0]
        assert image.note == "2 NaN shown as black, 1 +inf shown as white, 1 -inf shown as black"


def test_without_normalize_numbers_keep_their_meaning() -> None:
    def plain(array: Any) -> list[int]:
        (image,) = open_images(array, normalize=False)
        levels: list[int] = np.asarray(image.pixels)[0, :, 0].tolist()
        return levels

    assert plain(np.array([[0, 4095]], np.uint16)) == [0, 16]
    assert plain(np.array([[0, 1]], np.int64)) == [0, 1]
    with pytest.raises(ImageDecodeError, match="NaN or infinity"):
        plain(np.array([[0.0, np.nan]]))
    with pytest.raises(ImageDecodeError, match="integers from 0 to 300"):
        plain(np.array([[0, 300]]))
    with pytest.raises(RequestError, match="normalize is 1: use True or False"):
        open_images(np.zeros((2, 2)), normalize=1)  # type: ignore[arg-type]


def test_opened_image_follows_normalize_if_its_file_was_kept() -> None:
    # Large enough that the file is smaller than its pixels.
    values = np.full((50, 50), 4095, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    (opened,) = open_images(buffer)
    (plain,) = open_images(opened, normalize=False)
    assert (opened.pixels.getpixel((0, 0)), plain.pixels.getpixel((0, 0))) == (
        (255,) * 3,
        (16,) * 3,
    )
    assert open_images(plain)[0].digest == opened.digest
    (from_array,) = open_images(values, name="x")
    with pytest.raises(RequestError, match="x was opened with normalize=True"):
        open_images(from_array, normalize=False)
    (photo,) = open_images(np.zeros((2, 2), np.uint8))
    assert open_images(photo, normalize=False) == [photo]


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
    )
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_any_array_gives_images_or_an_image_error(array: np.ndarray[Any, Any]) -> None:
    refused, images = "", []
    try:
        images = open_images(array, name="x")
    except ImageError as error:
        refused = str(error)
    assert bool(images) != bool(refused)
    assert "\n" not in refused
    assert all(image.pixels.mode == "RGB" for image in images)


def test_bool_is_black_and_white() -> None:
    assert pixels(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]


def test_rgba_is_composited_on_white() -> None:
    assert pixels(np.zeros((1, 1, 4), np.uint8))[0, 0].tolist() == [255, 255, 255]


def test_floats_to_255_are_pixel_levels_with_a_note() -> None:
    (image,) = open_images(np.array([[0.0, 99.6, 255.0]]))
    assert np.asarray(image.pixels)[0, :, 0].tolist() == [0, 100, 255]
    assert image.note == "floats read as 0..255"


def test_a_small_overshoot_is_clipped() -> None:
    assert pixels(np.array([[-1e-7, 1 + 1e-7]]))[0, :, 0].tolist() == [0, 255]


def test_uint16_with_8_bit_values_gets_a_note() -> None:
    (image,) = open_images(np.full((2, 2), 200, np.uint16))
    assert image.note == "values up to 200 read as 0..255 (8-bit)"
    (image,) = open_images(np.full((2, 2), 200, np.uint16), normalize=False)
    assert "x.astype('uint8')" in str(image.note)


def test_channel_first_array_is_transposed_with_a_note() -> None:
    array = np.zeros((3, 6, 8), np.uint8)
    array[2] = 255
    (image,) = open_images(array)
    assert image.size == (8, 6)
    assert image.pixels.getpixel((0, 0)) == (0, 0, 255)
    assert image.note == "channel-first array 3x6x8"


def test_batch_becomes_images_scaled_by_one_range() -> None:
    batch = np.zeros((2, 4, 5, 3))
    batch[1] = 200.0
    images = open_images(batch, name="frames")
    assert [image.source for image in images] == ["frames[0]", "frames[1]"]
    assert [image.pixels.getpixel((0, 0)) for image in images] == [(0, 0, 0), (200, 200, 200)]
    assert [image.size for image in open_images(np.zeros((2, 3, 6, 8), np.uint8))] == [(8, 6)] * 2


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(5), "x has the shape 5: an image is HxW, HxWx3 or HxWx4."),
        (np.zeros((0, 4)), "x has the shape 0x4: there are no pixels in it."),
        (np.zeros((12, 6, 6)), "x has the shape 12x6x6: .*; for several grayscale images use list"),
        (np.zeros((3, 4, 4, 2), np.uint8), "has the shape 3x4x4x2"),
        (np.zeros((3, 4, 5), np.uint8), "has the shape 3x4x5"),
        (np.zeros((2, 2, 2, 2, 3)), "has the shape 2x2x2x2x3"),
        (np.array([[-1.0, 1.0]]), r"x holds floats from -1 to 1: scale them to 0\.\.1"),
        (np.array([[0.0, 1.4]]), r"x holds floats from 0 to 1\.4: .*np\.clip"),
        (np.array([[0.0, 300.0]]), "floats from 0 to 300"),
        (np.array([[-1, 300]]), "x holds integers from -1 to 300: .*use uint16"),
        (np.zeros((2, 2), complex), "x holds complex128 values: use uint8, or floats"),
        (np.zeros((2, 2), "S3"), r"x holds \|S3 values"),
    ],
)
def test_arrays_that_are_not_images_are_refused_with_advice(
    array: np.ndarray[Any, Any], words: str
) -> None:
    with pytest.raises(ImageDecodeError, match=words) as caught:
        open_images(array, name="x")
    assert caught.value.source == "x"


def test_array_with_too_many_pixels_is_refused_before_the_copy() -> None:
    huge = np.broadcast_to(np.uint8(0), (10_000, 10_000, 3))
    with pytest.raises(ImageTooLargeError, match="x is 10000x10000, 100 megapixels"):
        open_images(huge, name="x")


def test_batch_of_too_many_images_is_refused_before_the_copy() -> None:
    huge = np.broadcast_to(np.float64(0), (100_000, 1000, 1000, 3))
    with pytest.raises(ImageDecodeError, match=f"batch of 100000 images: .*{MAX_IMAGES}"):
        open_images(huge, name="x")


def test_views_and_other_strides_are_accepted() -> None:
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert (pixels(array[::-1, ::2, ::-1]) == array[::-1, ::2, ::-1]).all()


def test_objects_with_an_array_method_are_arrays() -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.full((2, 2), 7, np.uint8)

    class Gpu:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise TypeError("can't convert cuda:0\ndevice type tensor to numpy")

    assert pixels(Tensor()).max() == 7
    with pytest.raises(ImageDecodeError, match="t could not be turned into a NumPy array: can't"):
        open_images(Gpu(), name="t")


def test_objects_with_an_array_interface_are_arrays() -> None:
    class Interface:
        def __init__(self, array: Any) -> None:
            self.__array_interface__ = array.__array_interface__

    array = np.full((6, 7, 3), 9, np.uint8)
    assert (pixels(Interface(array)) == array).all()


def test_an_mlx_array_is_refused_with_advice() -> None:
    class array:  # noqa: N801 - as MLX calls it
        pass

    array.__module__ = "mlx.core"
    with pytest.raises(ImageDecodeError, match=r"x is an MLX array.*give np\.array\(x\)"):
        open_images(array(), name="x")
