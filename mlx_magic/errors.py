"""The errors of mlx-magic.

    MlxMagicError
    ├── RequestError             an option, a prompt or an expression cannot be used
    │   └── ContextLengthError   the prompt is longer than the model's context   .needed_tokens
    ├── ImageError               an image cannot be used                       .source
    │   ├── ImageNotFoundError   no such file, or a glob that matches nothing
    │   ├── ImageDecodeError     not an image, damaged or cut short
    │   ├── ImageTooLargeError   more pixels than are allowed
    │   └── FetchError           a URL was refused or did not deliver
    ├── ModelError               a model cannot be used                        .model
    │   ├── ModelNotFoundError   no such alias, folder or repository
    │   ├── CheckpointError      config or weights are missing or damaged
    │   ├── UnsupportedModelError   neither library knows the architecture
    │   ├── UntrustedCodeError   the checkpoint wants to run its own code      .wanted
    │   ├── DownloadError        the Hub is out of reach or refused
    │   ├── ImagesNotSupportedError   images were given to a text model        .vision_models
    │   ├── ModelInUseError      code holds it, and cannot be cancelled
    │   └── MemoryBudgetError    it would not fit             .needed_bytes .limit_bytes
    ├── GenerationError          the model failed while it was generating      .model
    └── EngineError              the inference thread is closed or has died

Every message is one line of at most 1,000 characters: what went wrong, where, and how to fix it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

_log = logging.getLogger(__name__)

LONGEST = 1000
"""Maximum characters of a message. The middle of a longer one is left out."""


class MlxMagicError(Exception):
    """Base class of all errors raised by mlx-magic."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    """Return a message as one printable line: names of files in it are untrusted text.

    The end is kept, since it says how to fix the problem.
    """
    if len(message) > 20 * LONGEST:
        message = f"{message[: 10 * LONGEST]}…{message[-10 * LONGEST :]}"
    if not message.isprintable():
        message = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    if len(message) <= LONGEST:
        return message
    tail = LONGEST // 2
    return f"{message[: LONGEST - 1 - tail]}…{message[len(message) - tail :]}"


class RequestError(MlxMagicError):
    """Raised when a request is not valid: an option, a prompt, an expression.

    Attributes
    ----------
    option : str or None
        Name of the offending option, without dashes.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class ContextLengthError(RequestError):
    """Raised when a prompt is longer than the context of its model.

    Attributes
    ----------
    model : str
        Alias, folder or repository id, as it was requested.
    needed_tokens, image_tokens : int
        Tokens of the prompt, and how many of them stand for images.
    limit_tokens : int
        The model's context.
    """

    def __init__(
        self, message: str, *, model: str, needed_tokens: int, image_tokens: int, limit_tokens: int
    ) -> None:
        super().__init__(message, option="prompt")
        self.model = model
        self.needed_tokens = needed_tokens
        self.image_tokens = image_tokens
        self.limit_tokens = limit_tokens


class ImageError(MlxMagicError):
    """Raised when an image cannot be used.

    Attributes
    ----------
    source : str
        The image as the user named it, shortened for display.
    """

    def __init__(self, message: str, *, source: str) -> None:
        super().__init__(message)
        self.source = source


class ImageNotFoundError(ImageError):
    """Raised when a file is missing or a glob matches nothing."""


class ImageDecodeError(ImageError):
    """Raised when the content is not an image, is damaged or is truncated."""


class ImageTooLargeError(ImageError):
    """Raised when an image has more pixels, or a file more bytes, than allowed.

    Attributes
    ----------
    size : int
        Size of the image in pixels, or of the file or download in bytes.
    limit : int
        Maximum, in the same unit.
    """

    def __init__(self, message: str, *, source: str, size: int, limit: int) -> None:
        super().__init__(message, source=source)
        self.size = size
        self.limit = limit


class FetchError(ImageError):
    """Raised when a URL was refused, could not be reached, or did not return an image."""


class ModelError(MlxMagicError):
    """Raised when a model cannot be used.

    Attributes
    ----------
    model : str
        Alias, folder or repository id, as it was requested.
    """

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class ModelNotFoundError(ModelError):
    """Raised when there is no such alias, folder or repository."""


class CheckpointError(ModelError):
    """Raised when a checkpoint's files are missing, unreadable or truncated."""


class UnsupportedModelError(ModelError):
    """Raised when neither mlx-vlm nor mlx-lm knows the architecture."""


class UntrustedCodeError(ModelError):
    """Raised when a checkpoint would run its own code and this load does not allow it.

    Attributes
    ----------
    wanted : tuple of str
        The code it would run, one entry each (``"config.json: model_file = 'x.py'"``).
    """

    def __init__(self, message: str, *, model: str, wanted: Sequence[str]) -> None:
        super().__init__(message, model=model)
        self.wanted = tuple(wanted)


class DownloadError(ModelError):
    """Raised when a repository cannot be downloaded: offline, gated, missing, interrupted."""


class ImagesNotSupportedError(ModelError):
    """Raised when images are given to a text-only model.

    Attributes
    ----------
    vision_models : tuple of str
        Vision models that can be used instead.
    """

    def __init__(self, message: str, *, model: str, vision_models: Sequence[str]) -> None:
        super().__init__(message, model=model)
        self.vision_models = tuple(vision_models)


class ModelInUseError(ModelError):
    """Raised when an unload is forced while code holds a lease on the model."""


class MemoryBudgetError(ModelError):
    """Raised before a load that would not fit into memory.

    Attributes
    ----------
    needed_bytes : int
        Estimated memory of the load.
    limit_bytes : int
        Memory that models may use.
    could_unload : tuple of str
        Models in memory that are in use or pinned.
    """

    def __init__(
        self,
        message: str,
        *,
        model: str,
        needed_bytes: int,
        limit_bytes: int,
        could_unload: Sequence[str] = (),
    ) -> None:
        super().__init__(message, model=model)
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes
        self.could_unload = tuple(could_unload)


class GenerationError(MlxMagicError):
    """Raised when a model fails while it generates.

    Attributes
    ----------
    model : str
        The model that failed.
    """

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class EngineError(MlxMagicError):
    """Raised when the inference thread is closed or has died."""


# What failed inside of a library: its error says more than ours.
_WITH_CAUSE = (GenerationError, EngineError)


class ShortTraceback:
    """Context manager for the body of a public function, which shortens tracebacks.

    An answer is made on several threads: without this a typing error in a file name would be shown
    below the frames of a dozen of our modules. An error of ours, or a KeyboardInterrupt, has one
    frame below the caller's: that of the function. Its cause is kept only if a model or the engine
    failed, without frames. The whole traceback is logged at level DEBUG. Other exceptions are not
    changed.
    """

    __slots__ = ("_handled",)

    def __enter__(self) -> None:
        # Code that calls us from an `except` block should see its own error as the context.
        self._handled = sys.exc_info()[1]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, MlxMagicError | KeyboardInterrupt) or trace is None:
            return
        if isinstance(error, MlxMagicError) and _log.isEnabledFor(logging.DEBUG):
            # As text: a record with the traceback would be cut with it.
            whole = "".join(traceback.format_exception(error)).rstrip()
            _log.debug("The whole traceback of an error:\n%s", whole)
        trace.tb_next = None
        cause = error.__cause__ if isinstance(error, _WITH_CAUSE) else None
        for link in _chain(cause):
            link.__traceback__ = None
        within = any(error is link for link in _chain(self._handled))
        error.__cause__ = cause
        error.__context__ = None if within else self._handled
        error.__suppress_context__ = cause is not None


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception with its causes and contexts."""
    found: list[BaseException] = []
    while error is not None and not any(error is link for link in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
