"""Resolves a model name to a checkpoint, and reads its description from its files."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError, DownloadError, ModelNotFoundError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import architectures, config_limits, files, remote_code
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.lora import Adapter
from mlx_magic.user_folders import expanded

_REPO_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")

# Keys of config.json that describe a vision encoder, by an object or a name.
_TOWERS = (
    "vision_tower",
    "mm_vision_tower",
    "vision_model",
    "vision_cfg",
    "vision_backbone",
    "vit_config",
    "visual",
    "img_processor",
)
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_token", "vision_start_token_id")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, as its JSON files and safetensors headers describe it.

    Attributes
    ----------
    name : str
        The name by which it was requested.
    path : Path
        Its folder.
    kind : {"vision", "text"}
        Read from config.json.
    model_type : str
        The architecture, as config.json names it.
    weight_bytes : int
        Bytes of its tensors on disk.
    bytes_by_dtype : mapping
        The same by dtype, in safetensors' names.
    quantization : str or None
        Such as ``"4-bit, group 64"``.
    wants_code : tuple of str
        Code that the libraries would run; see `remote_code.wanted_code`.
    config : mapping
        The parsed config.json.
    adapter : Adapter or None
        LoRA adapter that is loaded with it.
    """

    name: str
    path: Path
    kind: Kind
    model_type: str
    weight_bytes: int = 0
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    quantization: str | None = None
    wants_code: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    adapter: Adapter | None = None

    def adapted(self, adapter: Adapter) -> Checkpoint:
        """Return the checkpoint with an adapter, whose bytes and code are added."""
        sizes = Counter(self.bytes_by_dtype) + Counter(adapter.bytes_by_dtype)
        return replace(
            self,
            adapter=adapter,
            weight_bytes=self.weight_bytes + adapter.nbytes,
            bytes_by_dtype=dict(sizes),
            wants_code=self.wants_code + adapter.wants_code,
        )

    def require_trust(self, allowed: bool) -> None:
        """Refuse the checkpoint if it would run code and this load does not allow it.

        Raises
        ------
        UntrustedCodeError
        """
        remote_code.require_trust(self.wants_code, model=self.name, allowed=allowed)


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """A repository of the Hub that has to be downloaded first.

    Attributes
    ----------
    name : str
        The name by which it was requested.
    repo_id : str
        ``"organization/name"``.
    """

    name: str
    repo_id: str


def resolve(
    model: str,
    *,
    aliases: Mapping[str, str],
    offline: bool | None = None,
    cache: Path | None = None,
) -> Checkpoint | RemoteCheckpoint:
    """Find a model by alias, then as a folder, then in the Hub's cache.

    Parameters
    ----------
    model : str
        Alias, folder (``~`` is expanded) or Hub repository id.
    aliases : mapping
        Alias to folder or repository id.
    offline : bool, optional
        Whether downloads are forbidden; HF_HUB_OFFLINE if left out.
    cache : Path, optional
        The Hub's cache folder, instead of its default.

    Returns
    -------
    Checkpoint or RemoteCheckpoint
        The latter if a download is needed.

    Raises
    ------
    ModelNotFoundError
        No such alias, folder or repository id.
    DownloadError
        A repository that is not in the cache, while offline.
    CheckpointError, UnsupportedModelError
        From `inspect`.
    """
    target = aliases.get(model, model)
    path = _existing_path(target)
    if path is not None and path.is_dir():
        return inspect(path, model)
    if path is not None:
        raise ModelNotFoundError(
            f"{model} is a file: name the folder that holds config.json and the weights.",
            model=model,
        )
    if not _REPO_ID.fullmatch(target) or ".." in target:
        raise _not_found(model, target, aliases)
    cached = _cached_folder(target, cache)
    if cached is not None and files.is_complete(cached):
        return inspect(cached, model)
    if is_offline() if offline is None else offline:
        what = "is not in the local cache" if cached is None else "is incomplete in the local cache"
        raise DownloadError(
            f"{target} {what}, and downloads are off: unset HF_HUB_OFFLINE, or name a "
            "folder or a model that is there.",
            model=model,
        )
    return RemoteCheckpoint(model, target)


def inspect(
    folder: Path, name: str, *, trust_remote_code: bool = True, quick: bool = False
) -> Checkpoint:
    """Read the description of a checkpoint, without importing a library or reading tensors.

    Parameters
    ----------
    folder : Path
    name : str
        The name by which it was requested.
    trust_remote_code : bool
        False refuses a checkpoint that would run code, before its weights are checked. True
        leaves that to `Checkpoint.require_trust`.
    quick : bool
        For a list: vocabularies are not read, and a checkpoint that would take long is refused.

    Raises
    ------
    CheckpointError
        Files are missing, damaged or truncated.
    UnsupportedModelError
        No library knows the architecture.
    UntrustedCodeError
        Only with ``trust_remote_code=False``.
    """
    _require_encodable(folder, name)
    config, wanted = inspect_config(folder, name, trust_remote_code=trust_remote_code, quick=quick)
    kind = kind_of(config)
    contents = files.weights(folder, kind, model=name, quick=quick)
    sizes = contents.sizes
    config_limits.require_dimensions(
        config, tensors=contents.tensors, nbytes=sizes.total(), model=name
    )
    files.require_tokenizer(folder, model=name)
    return Checkpoint(
        name=name,
        path=folder,
        kind=kind,
        model_type=config["model_type"],
        weight_bytes=sizes.total(),
        bytes_by_dtype=dict(sizes),
        quantization=quantization_of(config),
        wants_code=wanted,
        config=config,
    )


def _require_encodable(folder: Path, name: str) -> None:
    """Refuse a folder whose name is not UTF-8: MLX cannot open files in it."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{name}: the name of its folder is not UTF-8, which MLX cannot open: rename it, or "
            "start Python in a UTF-8 locale.",
            model=name,
        ) from None


def inspect_config(
    folder: Path, name: str, *, trust_remote_code: bool, quick: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Check a checkpoint's JSON files, which are downloaded before the weights.

    Returns
    -------
    tuple
        The parsed config.json, and the code that the checkpoint would run.

    Raises
    ------
    CheckpointError, UnsupportedModelError, UntrustedCodeError
    """
    config = files.read_config(folder, model=name)
    wanted = remote_code.wanted_code(folder, model=name, quick=quick)
    remote_code.require_trust(wanted, model=name, allowed=trust_remote_code)
    config_limits.require_image_sizes(folder, config, model=name)
    if config.get("model_file") is None:  # otherwise the checkpoint has its own architecture
        architectures.require_known(kind_of(config), config, model=name)
    return config, wanted


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of a model from its config.json; its name does not matter."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict) and thinker.get("vision_config"):
        return "vision"
    if config.get("vision_config"):
        return "vision"
    if "vision_config" in config and config["vision_config"] is None:
        return "text"  # the language model of a vision model, saved separately
    if any(config.get(key) for key in _TOWERS):
        return "vision"
    layers = config.get("embd_layer")
    if isinstance(layers, dict) and layers.get("image_embd_layer"):
        return "vision"
    if any(config.get(key) is not None for key in _IMAGE_TOKENS):
        return "vision"
    return "vision" if architectures.is_visual(config) else "text"


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """Describe the quantization in a config.json, such as ``"4-bit, group 64"``."""
    found = config.get("quantization") or config.get("quantization_config")
    if not isinstance(found, dict):
        return None
    bits, group = found.get("bits"), found.get("group_size")
    method = found.get("mode") or found.get("quant_method")
    parts = [shown(method, 40)] if isinstance(method, str) and method != "affine" else []
    parts += [f"{bits}-bit"] if isinstance(bits, int) else []
    parts += [f"group {group}"] if isinstance(group, int) else []
    if any(isinstance(value, dict) and "bits" in value for value in found.values()):
        parts.append("mixed")
    return ", ".join(parts) or None


def is_folder(target: str) -> bool:
    """Return whether there is a folder of this name; ``~`` is expanded."""
    path = _existing_path(target)
    return path is not None and path.is_dir()


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _existing_path(target: str) -> Path | None:
    """Return the path of an existing file or folder, or None; the name may be invalid."""
    if not target.strip():
        return None
    try:
        path = expanded(target)
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, a zero byte
        return None


def _cached_folder(repo_id: str, cache: Path | None) -> Path | None:
    """Return a repository's folder in the Hub's cache, without using the network; or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache)
    return Path(found).parent if isinstance(found, str) else None


def _not_found(model: str, target: str, aliases: Mapping[str, str]) -> ModelNotFoundError:
    alias = f" (alias {model!r})" if target != model else ""
    if target != model or re.match(r"[~./\\]|\w:\\", target) or target.count("/") > 1:
        return ModelNotFoundError(
            f"There is no folder {target}{alias}: check the path.", model=model
        )
    near = difflib.get_close_matches(model.lower(), list(aliases), n=1)
    hint = f"did you mean {near[0]!r}? Otherwise name" if near else "name"
    known = ", ".join(sorted(aliases))
    known = f" ({known})" if known else ""
    return ModelNotFoundError(
        f"There is no model {model!r}: {hint} an alias{known}, a folder, or a Hub "
        "repository as organization/name.",
        model=model,
    )


def bytes_in_memory(checkpoint: Checkpoint, *, float32: Callable[[int], bool]) -> int:
    """Return the estimated bytes of a checkpoint's weights in memory.

    Parameters
    ----------
    checkpoint : Checkpoint
    float32 : callable
        Called with the bytes of the weights in float32; returns whether they are unpacked to
        float32.
    """
    quantization = checkpoint.config.get("quantization") or {}
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    unpacked = {
        "F16": 2.0,
        "BF16": 2.0,
        "U32": 32 / bits if isinstance(bits, int) and bits > 0 else 1.0,
    }
    unpacked_bytes = sum(
        int(size * unpacked.get(dtype, 1.0)) for dtype, size in checkpoint.bytes_by_dtype.items()
    )
    return unpacked_bytes if float32(unpacked_bytes) else checkpoint.weight_bytes
