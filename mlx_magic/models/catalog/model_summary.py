"""Descriptions of models on the disk or on the Hub, without loading or downloading weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.errors import UnsupportedModelError
from mlx_magic.formatting import shown
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.catalog.resolve import resolve
from mlx_magic.models.checkpoints import (
    architectures,
    batch_support,
    checkpoint,
    files,
    remote_code,
    strict_json,
)
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.config_limits import context_length
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

# Keys for the tokens of an image.
_IMAGE_TOKENS = ("mm_tokens_per_image", "image_seq_length", "image_seq_len")


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The description of a model that is not loaded.

    Attributes
    ----------
    name : str
        The name, as it was requested.
    place : str
        Folder, or ``"Hub: organization/name"``.
    kind : {"vision", "text"}
    model_type : str
        Architecture, from config.json.
    quantization : str or None
    nbytes : int
        Bytes of the weights on disk.
    needed : int
        Bytes of the weights in memory; for a repository on the Hub, the bytes on disk.
    context : int or None
        Maximum tokens of prompt and answer together.
    image_tokens : int or None
        Maximum tokens of an image, or tokens of each of its tiles; None if not configured.
    wants_code : tuple of str
        Code that it would run; for a repository on the Hub, only from its config.json.
    problem : str
        Why it cannot be used; empty if no reason is known.
    together : Verdict or None
        Whether it will answer several requests at once; None if that is known only after a
        load.
    """

    name: str
    place: str
    kind: str
    model_type: str
    quantization: str | None
    nbytes: int
    needed: int
    context: int | None
    image_tokens: int | None
    wants_code: tuple[str, ...] = ()
    problem: str = ""
    together: Verdict | None = None


def read(
    name: str, names: Names, *, float32: Callable[[int], bool], endpoint: str | None = None
) -> ModelSummary:
    """Describe a model. Of a repository that is not on the disk, only config.json is fetched.

    Blocks while it queries the Hub.

    Parameters
    ----------
    name : str
        Alias, folder or repository id.
    names : Names
    float32 : callable
        Whether weights are unpacked on this device. See `checkpoint.bytes_in_memory`.
    endpoint : str, optional
        Replaces the Hub client's endpoint.

    Raises
    ------
    ModelError
        There is no such model, its checkpoint cannot be used, or the Hub cannot be asked.
    """
    found = resolve(name, names)
    if isinstance(found, Checkpoint):
        path = found.path / "processor_config.json"
        processor = None
        # `resolve` has read the file before, but it may have changed since.
        with contextlib.suppress(UnreadableFileError, OSError):
            processor = strict_json.read(path) if path.is_file() else None
        return ModelSummary(
            name,
            shown(str(found.path), 400),
            found.kind,
            found.model_type,
            found.quantization,
            found.weight_bytes,
            checkpoint.bytes_in_memory(found, float32=float32),
            context_length(found.config),
            _image_tokens(found.config, processor),
            found.wants_code,
            together=batch_support.expected(found.kind, found.config),
        )
    return _remote(name, found.repo_id, endpoint)


def _remote(name: str, repo_id: str, endpoint: str | None) -> ModelSummary:
    from mlx_magic.models.hub import download

    # Not into the Hub's cache, where it would look like an incomplete model.
    with tempfile.TemporaryDirectory() as cache:
        folder, nbytes = download.fetch_config(repo_id, Path(cache), endpoint=endpoint)
        config = files.read_config(folder, model=name)
        wanted = remote_code.wanted_code(folder, model=name)
    kind = checkpoint.kind_of(config)
    return ModelSummary(
        name,
        f"Hub: {repo_id}",
        kind,
        config["model_type"],
        checkpoint.quantization_of(config),
        nbytes,
        nbytes,
        context_length(config),
        _image_tokens(config, None),
        wanted,
        _problem(config, name, nbytes),
        batch_support.expected(kind, config),
    )


def _problem(config: Mapping[str, Any], name: str, nbytes: int) -> str:
    if not nbytes:
        return "it has no safetensors weights: choose an MLX or safetensors version"
    if config.get("model_file") is None:
        try:
            architectures.require_known(checkpoint.kind_of(config), config, model=name)
        except UnsupportedModelError as error:
            return str(error)
    return ""


def _image_tokens(config: Mapping[str, Any], processor: Any) -> int | None:
    return _number(_IMAGE_TOKENS, (processor, config, config.get("vision_config")))


def _number(keys: Iterable[str], parts: Iterable[Any]) -> int | None:
    """Return the first int that one of the parts has for one of the keys."""
    found = (part.get(key) for part in parts if isinstance(part, Mapping) for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)
