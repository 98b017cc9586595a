"""Arrays become images by shape, type and range, or one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
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


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint16, st.tuples(SIDES, SIDES)))
def test_uint16_is_scaled_from_its_full_range(array: np.ndarray[Any, Any]) -> None:
    assert np.abs(pixels(array)[..., 0] - array / 257).max() <= 0.5


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))),
    st.sampled_from([np.int16, np.int32, np.int64, np.uint32, np.uint64]),
)
def test_other_integers_from_0_to_255_are_pixel_levels(
    array: np.ndarray[Any, Any], dtype: Any
) -> None:
    assert (pixels(array.astype(dtype)) == array).all()


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
    assert image.note is not None
    assert "x.astype('uint8')" in image.note


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
        (np.full((2, 2), np.nan), "x holds NaN or infinity: replace them, .*nan_to_num"),
        (np.full((2, 2), np.inf), "x holds NaN or infinity"),
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


def test_an_mlx_array_is_refused_with_advice() -> None:
    class array:  # noqa: N801 - as MLX calls it
        pass

    array.__module__ = "mlx.core"
    with pytest.raises(ImageDecodeError, match=r"x is an MLX array.*give np\.array\(x\)"):
        open_images(array(), name="x")
