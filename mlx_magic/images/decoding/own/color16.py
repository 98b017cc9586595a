"""Colors of 16 bits in PNG and TIFF files, of which Pillow reads only the upper 8.

An image of 12 bits, stored in 16, would be black.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ENDINGS = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
# Pillow's raw modes whose bytes are read in another way than Pillow would: two channels of 16 bits
# are four of 8, and premultiplied colors are divided by alpha after they were scaled.
_AS_BYTES = "LA;16B"
_PREMULTIPLIED = "RGBa"
_SLICE_PIXELS = 1_000_000


def raw_mode(image: Any) -> str:
    """Return Pillow's raw mode of an opened image whose colors have 16 bits; ``""`` for others."""
    modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile}
    if len(modes) != 1:
        return ""
    mode = modes.pop()
    if not isinstance(mode, str) or mode.startswith("I;"):
        return ""
    return mode if mode.endswith(tuple(_ENDINGS)) else ""


def planes(mode: str) -> tuple[str, ...]:
    """Return the raw modes that read the upper and the lower bytes; one reads both of LA."""
    if mode == _AS_BYTES:
        return ("RGBA",)
    bands, ending = mode[:-4], mode[-4:]
    bands = "RGBA" if bands == _PREMULTIPLIED else bands
    # Big-endian values begin with the upper byte, and "16B" reads the first.
    upper, lower = (";16B", ";16L") if ending == ";16B" else (";16L", ";16B")
    if ending == ";16N":
        upper, lower = ";16N", ";16B"
    return bands + upper, bands + lower


def set_raw_mode(image: Any, mode: str) -> None:
    """Let an opened image read its file in another raw mode."""
    image.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile in image.tile
    ]


class DeepColors:
    """An image of 16 bits a channel.

    Parameters
    ----------
    mode : str
        From `raw_mode`.
    read : sequence of PIL.Image.Image
        The image in each raw mode of `planes`, loaded.
    transparent : tuple of int or None
        The color that is transparent.
    """

    def __init__(self, mode: str, read: list[Image.Image], transparent: Any = None) -> None:
        self._read = read
        self._transparent = transparent if isinstance(transparent, tuple) else None
        self.size = read[0].size
        bands = mode[:-4]
        self.mode = {"RGBX": "RGB", _PREMULTIPLIED: _PREMULTIPLIED}.get(bands, bands)
        self._colors = 1 if self.mode == "LA" else 4 if self.mode == "CMYK" else 3

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.mode in ("LA", "RGBA", _PREMULTIPLIED)

    def parts(self, *, alpha: bool, checkpoint: Callable[[], None]) -> Any:
        """Yield the values of the colors, or of alpha, in slices."""
        for box in self._boxes():
            checkpoint()
            values = self._values(box)
            yield values[..., self._colors :] if alpha else values[..., : self._colors]

    def scaled(
        self,
        colors: Callable[[NDArray[Any]], NDArray[np.uint8]],
        alpha: Callable[[NDArray[Any]], NDArray[np.uint8]],
        checkpoint: Callable[[], None],
    ) -> Image.Image:
        """Return the image with 8 bits a channel."""
        import numpy as np

        mode = "RGBA" if self._transparent else self.mode
        made = Image.new(mode, self.size)
        for box in self._boxes():
            checkpoint()
            values = self._values(box)
            layers = [colors(values[..., : self._colors])]
            if self.has_alpha:
                layers.append(alpha(values[..., self._colors :]))
            if self._transparent:
                opaque = (values != np.array(self._transparent, np.uint16)).any(-1, keepdims=True)
                layers.append(opaque.astype(np.uint8) * np.uint8(255))
            pixels = np.ascontiguousarray(np.concatenate(layers, axis=-1))
            size = box[2] - box[0], box[3] - box[1]
            made.paste(Image.frombytes(mode, size, pixels.tobytes()), box)
        return made.convert("RGBA") if mode == _PREMULTIPLIED else made

    def _boxes(self) -> list[tuple[int, int, int, int]]:
        width, height = self.size
        across = min(width, _SLICE_PIXELS)
        down = max(1, _SLICE_PIXELS // across)
        return [
            (left, top, min(left + across, width), min(top + down, height))
            for top in range(0, height, down)
            for left in range(0, width, across)
        ]

    def _values(self, box: tuple[int, int, int, int]) -> NDArray[np.uint16]:
        import numpy as np

        found = [np.asarray(image.crop(box)).astype(np.uint16) for image in self._read]
        if len(found) == 1:
            upper, lower = found[0][..., 0::2], found[0][..., 1::2]
        else:
            upper, lower = found
        values: NDArray[np.uint16] = upper * np.uint16(256) + lower
        return values
