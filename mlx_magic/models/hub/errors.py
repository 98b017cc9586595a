"""Translates exceptions of the Hub client to one-line errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import DownloadError, MlxMagicError
from mlx_magic.formatting import shown


@contextmanager
def translated(repo_id: str, cancel: CancelToken) -> Iterator[None]:
    """Translate exceptions of the Hub client within this block to a `DownloadError`.

    Parameters
    ----------
    repo_id : str
    cancel : CancelToken
        Once it is cancelled, any exception is raised as `Cancelled`.

    Raises
    ------
    Cancelled, DownloadError
    """
    try:
        yield
    except (MlxMagicError, Cancelled):
        raise
    except Exception as error:
        # hf_xet wraps exceptions of a progress bar.
        if cancel.requested:
            raise Cancelled from error
        raise DownloadError(f"{repo_id} {_reason(error)}", model=repo_id) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    error = _cause_with_response(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "has to be looked up on the Hub, and downloads are off: unset HF_HUB_OFFLINE."
    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its terms on its Hub page, then run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision on the Hub: leave the revision out, or check its name."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "is not on the Hub, or is private: check its name, or run `hf auth login` "
            "if it is yours."
        )
    if status in (401, 403):
        return (
            f"was refused by the Hub (HTTP {status}): run `hf auth login` with an account that "
            "has access."
        )
    if status == 429:
        return (
            "was rate-limited by the Hub (HTTP 429, too many requests): try again in a few minutes."
        )
    if status is not None and status >= 500:
        return f"could not be fetched, the Hub has a problem (HTTP {status}): try again later."
    if status is not None:
        return f"could not be fetched (HTTP {status}): check its name, or try again later."
    if isinstance(error, errors.HFValidationError):
        return "is not a valid repository id: write it as organization/name."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "does not fit on the disk: make room, or set HF_HOME to a larger one."
    if isinstance(error, PermissionError):
        path = shown(str(error.filename), 200)
        return f"cannot be written to the cache ({path}): check its permissions."
    text = shown(str(error), 160) or type(error).__name__
    return (
        f"could not be fetched: the Hub is out of reach or the connection broke "
        f"({type(error).__name__}: {text}): check the network and try again; what is "
        "complete is not fetched twice."
    )


def _cause_with_response(error: Exception) -> Exception:
    """Return the cause that has the Hub's response, or the error if there is none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, Exception) and getattr(found, "response", None) is not None:
            return found
        found = found.__cause__
    return error
