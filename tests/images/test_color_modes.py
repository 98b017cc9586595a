"""Pixels are converted in slices, and are those of a conversion in one piece."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.images import arrays, color_modes
from mlx_magic.images.color_modes import converted
from mlx_magic.images.opening import open_images

SLICED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[5, 64, 1_000_000])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make slices so small that there are many, also within a row."""
    monkeypatch.setattr(color_modes, "_SLICE_PIXELS", request.param)
    monkeypatch.setattr(arrays, "_SLICE_VALUES", request.param)


def in_one_piece(image: Image.Image) -> tuple[bytes, tuple[str, ...]]:
    """Convert deep gray at once, as `value_range` describes."""
    values = np.asarray(image)
    notes: tuple[str, ...] = ()
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    floats = image.mode == "F"
    if low >= 0 and high <= 1:
        top = 1.0
        notes = () if floats or not high else ("mask of 0 and 1 shown as black and white",)
    elif low >= 0 and 2 <= high <= 255 and floats:
        top, notes = 255.0, ("floats read as 0..255",)
    elif low >= 0 and high <= 65535 and not floats:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        top = 2.0**bits - 1
        notes = (f"values up to {high:.0f} read as 0..{top:.0f} ({bits}-bit)",)
    else:
        notes = (f"values {low:g} to {high:g} stretched to black to white",)
        wide, top = wide - low, (high - low) or 1.0
    if floats and top in (1.0, 255.0) and low >= 0 and not wide[wide < 0].size:
        wide = wide.astype(np.float32)
    grey = np.rint(wide * wide.dtype.type(255.0 / top)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB").tobytes(), notes


RANGES = [(0, 1), (0, 255), (0, 65_535), (-7, 300), (1000, 1000), (-(2**31), 2**31 - 1)]


@st.composite
def deep(draw: st.DrawFn) -> Image.Image:
    """Draw an image of a mode with more than eight bits."""
    mode = draw(st.sampled_from(["I;16", "I;16B", "I;16L", "I", "F"]))
    size = draw(st.integers(1, 23)), draw(st.integers(1, 23))
    low, high = draw(st.sampled_from(RANGES))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    values = random.uniform(low, high, size[::-1])
    if mode == "F":
        image = Image.fromarray(values.astype(np.float32))
    elif mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        order = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, size, np.abs(values % 65_536).astype(order).tobytes())
    if draw(st.booleans()):
        image.info["transparency"] = draw(st.integers(-1, 70_000))
    return image


@SLICED
@given(image=deep())
def test_deep_gray_in_slices_equals_conversion_at_once(slices: None, image: Image.Image) -> None:
    before = image.tobytes()
    made = converted(image)
    assert (made.pixels.tobytes(), made.notes) == in_one_piece(image)
    assert made.pixels.size == image.size
    assert image.tobytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_counted_in_any_slice(slices: None, value: float) -> None:
    values = np.full((9, 9), 0.5, np.float32)
    values[8, 7] = value
    for shown in (Image.fromarray(values), values):
        (image,) = open_images(shown)
        assert image.pixels.getpixel((7, 8)) == ((255,) * 3 if value == np.inf else (0,) * 3)
        assert str(image.note).startswith("1 ")
        with pytest.raises(ImageDecodeError, match="NaN or infinity"):
            open_images(shown, normalize=False)


KINDS: list[Any] = [np.bool_, np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64]


@SLICED
@given(data=st.data())
def test_arrays_in_slices_equal_conversion_at_once(slices: None, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    shape = data.draw(st.tuples(st.integers(1, 23), st.integers(1, 23), st.sampled_from([1, 3, 4])))
    top = data.draw(st.sampled_from([1, 255])) if kind is not np.bool_ else 1
    array = (np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) * top).astype(kind)
    (image,) = open_images(array)
    high = array.max()
    if kind in (np.uint16, np.int64):
        # 0 if all values are below 1, else a mask, or levels.
        plain = (array * (255 if high <= 1 else 1)).astype(np.uint8)
    elif array.dtype.kind == "f":
        scale = np.float32(255.0 if high <= 1.001 else 1.0)
        if not (high <= 1.001 or high >= 2):
            return
        plain = np.rint(np.clip(array.astype(np.float32) * scale, 0, 255)).astype(np.uint8)
    else:
        plain = array.astype(np.uint8) * np.uint8(255 if kind is np.bool_ else 1)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[shape[2]]
    layer = Image.frombytes(mode, shape[1::-1], plain.tobytes())
    expected = converted(layer).pixels
    assert image.pixels.tobytes() == expected.tobytes()


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]
OTHERS = ["tiff_adobe_deflate", "packbits", "zstd", "lzma"]


@pytest.mark.parametrize(
    ("mode", "compression"),
    [(mode, kind) for mode in MODES for kind in (None, "tiff_lzw")] + [("RGB", o) for o in OTHERS],
)
def test_tiffs_equal_plain_pillow(mode: str, compression: str | None) -> None:
    noise = Image.effect_noise((37, 29), 90)
    if mode == "I;16":
        image: Image.Image = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", [noise, noise, noise])
    elif mode == "PA":
        image = noise.convert("RGB").convert("P").convert("PA")
    else:
        image = noise.convert("RGB").convert(mode)
    buffer = io.BytesIO()
    for turn in (1, 6) if mode in ("RGB", "I;16") else (1,):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = turn
        try:
            image.save(buffer, "TIFF", exif=exif, **{"compression": compression})
        except (OSError, KeyError):
            pytest.skip("Pillow does not write it")
        plain = Image.open(io.BytesIO(buffer.getvalue()))
        plain.load()
        expected = converted(plain).pixels
        (read,) = open_images(buffer.getvalue())
        assert (read.size, read.pixels.tobytes()) == (expected.size, expected.tobytes())
        opened = Image.open(io.BytesIO(buffer.getvalue()))
        (read,) = open_images(opened)
        assert (read.size, read.pixels.tobytes()) == (expected.size, expected.tobytes())
        opened.load()  # and is still good
        assert opened.tobytes() == plain.tobytes()


def test_range_of_an_array_covers_all_slices(slices: None) -> None:
    array = np.zeros((9, 9))
    array[8, 8] = -5
    with pytest.raises(ImageDecodeError, match="floats from -5 to 0"):
        open_images(array)
    array[8, 8] = 7
    assert open_images(array)[0].note == "floats read as 0..255"
