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
    """Raise a panic of a library in Rust as an error: it is a BaseException to Python.

    tokenizers panics where a regular expression of tokenizer.json backtracks too much. As it is,
    that would end the inference thread, and take all models with it.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        error.__traceback__ = None
        raise RuntimeError(f"a library gave up: {one_line(error)}") from None


def load_error(library: str, checkpoint: Checkpoint, error: Exception) -> ModelError:
    """Say in our words why a checkpoint did not load.

    Parameters
    ----------
    library : str
        ``"mlx-vlm"`` or ``"mlx-lm"``.
    checkpoint : Checkpoint
    error : Exception
        What the library raised.
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
    """Wrap a model's failure. Frames would hold its arrays: only their text is kept.

    Parameters
    ----------
    model : str
        As it was asked for.
    error : Exception
        What was raised while it answered.
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
    """Say in one line what kept a request or a load from its beginning.

    What a person may do about is known by then, and is said where it is found out. This is for
    the rest: a system without room, files or memory.
    """
    words = getattr(error, "strerror", None) or one_line(error)
    return GenerationError(
        f"{shown(model)} was not asked: {type(error).__name__}: {words}. Check the disk, the "
        "limits of this process and the files that were named, then ask again.",
        model=model,
    )
