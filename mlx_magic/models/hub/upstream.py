"""The names of huggingface_hub below its top level. This is the only place that names them.

Each mechanism is checked once, at its first use; see `upstream_checks`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlx_magic.models.upstream_checks import Mechanism, Name
from mlx_magic.user_folders import expanded

_UTILS, _CONSTANTS = "huggingface_hub.utils", "huggingface_hub.constants"
_HEADERS = Name(_UTILS, "build_hf_headers", ())

LISTINGS = Mechanism(
    "bounded reading of the Hub's listings",
    _HEADERS,
    Name(_UTILS, "get_session", ()),
    Name(_UTILS, "hf_raise_for_status", ("response",)),
    Name(_UTILS, "validate_repo_id", ("repo_id",)),
)
"""Otherwise ``HfApi.model_info`` reads them."""

RESUMABLE = Mechanism(
    "resuming of downloads",
    _HEADERS,
    Name(_UTILS, "WeakFileLock", ("lock_file",), ("timeout",)),
    Name(
        "huggingface_hub.file_download",
        "http_get",
        ("url", "temp_file"),
        (
            "resume_size",
            "headers",
            "expected_size",
            "displayed_filename",
            "tqdm_class",
        ),
    ),
)
"""Otherwise ``snapshot_download`` fetches each file."""

PROGRESS = Mechanism(
    "the progress of downloads",
    Name(_UTILS, "tqdm"),
    Name(_UTILS, "tqdm.update", ("n",)),
)
"""Otherwise progress is reported, and a cancel checked, between two files."""

FOLDERS = Mechanism(
    "the Hub client's own folders",
    Name(_CONSTANTS),
    Name(_CONSTANTS, "HF_HUB_CACHE"),
    Name(_CONSTANTS, "HF_HOME"),
)
"""Otherwise they are read from the documented environment variables."""

_MOST_IN_ONE_REQUEST = 50 * 10**9


def cache_folder() -> Path:
    """Return the folder of downloaded repositories."""
    return Path(_constant("HF_HUB_CACHE") or home_folder() / "hub")


def home_folder() -> Path:
    """Return the Hub client's folder, which holds its cache and copied code."""
    caches = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(_constant("HF_HOME") or caches / "huggingface")


def most_in_one_request() -> int:
    """Return the bytes from which only the Hub client itself can download a file."""
    most: Any = None
    if FOLDERS.off is None:
        most = getattr(FOLDERS.names.constants, "MAX_HTTP_DOWNLOAD_SIZE", None)
    return most if isinstance(most, int) else _MOST_IN_ONE_REQUEST


def _constant(name: str) -> str | None:
    """Return a constant as it is now, or the environment variable of the same name."""
    if FOLDERS.off is not None:
        return os.environ.get(name)
    return str(getattr(FOLDERS.names.constants, name))
