"""The rows of a map: what goes in, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_magic.errors import ImageError, MlxMagicError

if TYPE_CHECKING:
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.image import ImageInput

NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class InputRow:
    """One image that was given, not opened yet.

    Attributes
    ----------
    index : object
        Label of the row: of a pandas column its index, else its position.
    value : object
        What `open_images` takes.
    source : str
        Name for display.
    path : Path or None
        The local file, if it is one.
    columns : mapping
        Values that a prompt may name.
    again : callable or None
        Returns the value again, to show the image later; None for a file, and where it is gone.
    error : ImageError or None
        Why there is no image in this row.
    """

    index: Any
    value: Any
    source: str
    path: Path | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    again: Callable[[], Any] | None = None
    error: ImageError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class InputRows:
    """All images of a map.

    Attributes
    ----------
    rows : iterator of InputRow
    total : int or None
        Their number; None if it is not known before the end.
    columns : tuple of str
        Names that a prompt may use.
    index_names : tuple of (str or None)
        Names of the levels of the index.
    pulled : bool
        Whether the rows come from code of the notebook, such as a generator. They are then taken
        on the thread that called, each before the next one is asked for.
    note : str
        What was left out, for display; empty if nothing was.
    """

    rows: Iterator[InputRow]
    total: int | None
    columns: tuple[str, ...] = ()
    index_names: tuple[Any, ...] = (None,)
    pulled: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class MapImage:
    """The image of a row: where it came from and what it was, without its pixels.

    Attributes
    ----------
    source : str
        The file or URL, or the name of the value.
    digest : str
        SHA-256 (hex) of the pixels that the model saw; empty if there were none.
    path : str
        The local file; empty if it is none.
    """

    source: str
    digest: str = ""
    path: str = ""
    _again: Callable[[], Any] | None = field(default=None, repr=False, compare=False)

    def open(
        self, *, max_pixels: int | None = None, normalize: bool = True
    ) -> tuple[ImageInput, bool]:
        """Open the image again.

        Parameters
        ----------
        max_pixels, normalize : optional
            Those of the map, without which the digest differs.

        Returns
        -------
        image : ImageInput
        changed : bool
            Whether its pixels are others than those that the model saw.

        Raises
        ------
        ImageError
            It is gone, or no longer an image.
        """
        from mlx_magic.images.opening import open_images

        value: Any = Path(self.path) if self.path else self._again() if self._again else None
        if value is None:
            raise ImageError(f"{self.source} was not kept: only files are.", source=self.source)
        images = open_images(value, name=self.source, max_pixels=max_pixels, normalize=normalize)
        return images[0], images[0].digest != self.digest

    def __reduce__(self) -> tuple[Any, ...]:
        return MapImage, (self.source, self.digest, self.path)


@dataclass(frozen=True, slots=True, eq=False)
class MapRow:
    """The answer to one question about one image.

    Attributes
    ----------
    index : object
        Label of the image: of a pandas column its index, else its position, from 0.
    image : MapImage
        Source and digest of the image, not its pixels.
    result : VisionResult or None
        The answer; None if there is an error. Its image is opened again when its pixels are used.
    error : MlxMagicError or None
        Why there is no answer.
    question : str
        Name of the question, if `prompt` was a dictionary.
    model : str
        The model.
    reused : bool
        Whether the answer comes from the journal.
    """

    index: Any
    image: MapImage
    result: VisionResult | None
    error: MlxMagicError | None = None
    question: str = ""
    model: str = ""
    reused: bool = False


MapImage.__module__ = MapRow.__module__ = "mlx_magic"
