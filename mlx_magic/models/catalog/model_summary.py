"""What a model is, on this disk or on the Hub, read without loading or fetching its weights."""

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
    weight_size,
)
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

# What one image takes, where a configuration says so.
_IMAGE_TOKENS = ("mm_tokens_per_image", "image_seq_length", "image_seq_len")
_CONTEXT = ("max_position_embeddings", "max_sequence_length", "n_positions", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What can be said of a model that is not loaded.

    Attributes
    ----------
    name : str
        As it was asked for.
    place : str
        Folder, or ``"Hub: organization/name"``.
    kind : {"vision", "text"}
    model_type : str
        Architecture, from config.json.
    quantization : str or None
    nbytes : int
        Bytes of the weights on disk.
    needed : int
        Bytes that they will take in memory; of a repository on the Hub, those on disk.
    context : int or None
        Most tokens of prompt and answer together.
    image_tokens : int or None
        What an image takes at most or in each of its parts, where its configuration says so.
    wants_code : tuple of str
        What it would run; of a repository only what its config.json says.
    problem : str
        Why it cannot be used; empty if it can as far as one can see.
    together : Verdict or None
        Whether it will answer several requests at once; None where only a load tells.
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
    """Say what a model is; of a repository that is not here, config.json alone is fetched.

    Blocks while it asks the Hub.

    Parameters
    ----------
    name : str
        Alias, folder or repository id.
    names : Names
    float32 : callable
        Whether weights are unpacked here. See `weight_size.expected`.
    endpoint : str, optional
        Instead of the Hub client's own.

    Raises
    ------
    ModelError
        There is no such model, its checkpoint cannot be used, or the Hub cannot be asked.
    """
    found = resolve(name, names)
    if isinstance(found, Checkpoint):
        path = found.path / "processor_config.json"
        processor = None
        # `resolve` has read it, or refused the checkpoint; but it may change meanwhile.
        with contextlib.suppress(UnreadableFileError, OSError):
            processor = strict_json.read(path) if path.is_file() else None
        return ModelSummary(
            name,
            shown(str(found.path), 400),
            found.kind,
            found.model_type,
            found.quantization,
            found.weight_bytes,
            weight_size.expected(found, float32=float32),
            _context(found.config),
            _image_tokens(found.config, processor),
            found.wants_code,
            together=batch_support.expected(found.kind, found.config),
        )
    return _remote(name, found.repo_id, endpoint)


def _remote(name: str, repo_id: str, endpoint: str | None) -> ModelSummary:
    from mlx_magic.models.hub import download

    # Not into the cache: there it would look like a model that is cut short.
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
        _context(config),
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


def _context(config: Mapping[str, Any]) -> int | None:
    return _number(_CONTEXT, (config.get("text_config"), config.get("llm_config"), config))


def _image_tokens(config: Mapping[str, Any], processor: Any) -> int | None:
    return _number(_IMAGE_TOKENS, (processor, config, config.get("vision_config")))


def _number(keys: Iterable[str], parts: Iterable[Any]) -> int | None:
    """Return the first whole number that one of the parts has under one of the keys."""
    found = (part.get(key) for part in parts if isinstance(part, Mapping) for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)
