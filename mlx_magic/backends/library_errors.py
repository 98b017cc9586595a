"""Errors of mlx-vlm and mlx-lm, translated once."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from mlx_magic.backends.device import platform
from mlx_magic.errors import CheckpointError, GenerationError, ModelError, UnsupportedModelError
from mlx_magic.formatting import one_line, shown
from mlx_magic.models.checkpoints.checkpoint import Checkpoint


@contextlib.contextmanager
def no_panics() -> Iterator[None]:
    """Raise a panic of a Rust library as a RuntimeError; in Python it is a BaseException.

    tokenizers panics if a regular expression of tokenizer.json backtracks too much. Unconverted,
    the panic would end the inference thread, and all models with it.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        error.__traceback__ = None
        raise RuntimeError(f"a library panicked: {one_line(error)}") from None


def load_error(library: str, checkpoint: Checkpoint, error: Exception) -> ModelError:
    """Translate a library's error of a load.

    Parameters
    ----------
    library : str
        ``"mlx-vlm"`` or ``"mlx-lm"``.
    checkpoint : Checkpoint
    error : Exception
        Error of the library.
    """
    if compiler := platform.compile_failure(error):
        return CheckpointError(f"{checkpoint.name}: {compiler}", model=checkpoint.name)
    text = one_line(error)
    if "odel type" in text and "not supported" in text:
        return UnsupportedModelError(
            f"{checkpoint.name}: this {library} does not know model_type "
            f"{checkpoint.model_type!r}: update {library}, or choose another model.",
            model=checkpoint.name,
        )
    return CheckpointError(
        f"{checkpoint.name}: {library} could not load {checkpoint.path}: {text}",
        model=checkpoint.name,
    )


def generation_error(model: str, error: Exception) -> GenerationError:
    """Wrap an error of a running request, with its traceback as text: frames would hold arrays.

    Parameters
    ----------
    model : str
        Name as in the request.
    error : Exception
        Error of the request.
    """
    if compiler := platform.compile_failure(error):
        return GenerationError(f"{model}: {compiler}", model=model)
    detail = one_line(error)
    failure = GenerationError(
        f"{model} failed while it answered: {type(error).__name__}: {detail}", model=model
    )
    failure.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
    return failure


def preparing_error(model: str, error: Exception) -> GenerationError:
    """Wrap an unexpected error of a request's or a load's preparation.

    Errors with a known remedy are raised as such where they occur. This is for the rest, such as
    a system out of disk space, file handles or memory.
    """
    words = getattr(error, "strerror", None) or one_line(error)
    return GenerationError(
        f"{shown(model)} was not asked: {type(error).__name__}: {words}. Check the disk, the "
        "limits of this process and the files that were named, then ask again.",
        model=model,
    )
