"""Reads and checks a LoRA adapter on disk, before any weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError, ModelNotFoundError
from mlx_magic.models.checkpoints import remote_code
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.files import PICKLES, first_match, read_object
from mlx_magic.models.checkpoints.safetensors import tensor_bytes
from mlx_magic.user_folders import expanded

CONFIG = "adapter_config.json"
_WEIGHTS: Mapping[Kind, tuple[str, ...]] = {
    "text": ("adapters.safetensors",),
    "vision": ("adapters.safetensors", "weights.safetensors"),
}
_MOST_RANK = 2**14  # the width of large models
_LIBRARY: Mapping[Kind, str] = {"text": "mlx-lm", "vision": "mlx-vlm"}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, as its files describe it.

    Attributes
    ----------
    path : Path
        Its folder.
    bytes_by_dtype : mapping
        Bytes of its tensors by dtype, in safetensors' names.
    wants_code : tuple of str
        Code that a library would run.
    """

    path: Path
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    wants_code: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(self.bytes_by_dtype.values())


def require_folder(folder: Path, *, model: str) -> Path:
    """Return the folder with ``~`` expanded, if it exists.

    Raises
    ------
    ModelNotFoundError
    """
    folder = expanded(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ModelNotFoundError(
            f"{model}: the adapter {folder} {what}: name the folder that holds {CONFIG} and "
            "adapters.safetensors.",
            model=model,
        )
    return folder


def inspect(folder: Path, kind: Kind, *, model: str) -> Adapter:
    """Read the description of an adapter, without importing a library or reading tensors.

    Parameters
    ----------
    folder : Path
        ``~`` is expanded.
    kind : {"vision", "text"}
        Kind of the base model.
    model : str
        Name of the base model, for the errors.

    Raises
    ------
    ModelNotFoundError
        There is no such folder.
    CheckpointError
        The library of this kind cannot read it, or it is damaged.
    """
    folder = require_folder(folder, model=model)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{model}: the adapter {folder} has no {CONFIG}: copy it beside the weights, as "
            f"{_LIBRARY[kind]} wrote it.",
            model=model,
        )
    config = read_object(folder / CONFIG, model=model)
    weights = next((folder / n for n in _WEIGHTS[kind] if (folder / n).is_file()), None)
    if weights is None:
        raise _no_weights(folder, config, kind, model)
    _require_parameters(config, folder, kind, model)
    sizes: Counter[str] = tensor_bytes(weights, model=model)
    if not sizes:
        raise CheckpointError(
            f"{model}: the adapter's {weights.name} holds no tensors: train or fetch it again.",
            model=model,
        )
    wanted = tuple(f"adapter's {line}" for line in remote_code.wanted_code(folder, model=model))
    return Adapter(folder.resolve(), dict(sizes), wanted)


def _no_weights(folder: Path, config: Mapping[str, Any], kind: Kind, model: str) -> CheckpointError:
    pickles = first_match(folder, (*PICKLES, "*.npz"))
    if "peft_type" in config:
        text = f"is in PEFT format, which {_LIBRARY[kind]} does not read: convert it to MLX first"
    elif pickles:
        text = f"has only pickled weights ({pickles}), which can run code and are not read"
    else:
        text = f"has no {' or '.join(_WEIGHTS[kind])}: train or fetch it again"
    return CheckpointError(f"{model}: the adapter {folder} {text}.", model=model)


def _require_parameters(config: Mapping[str, Any], folder: Path, kind: Kind, model: str) -> None:
    """Refuse a configuration with which the library would fail in the middle of the load."""
    if config.get("fine_tune_type", "lora") == "full":
        return
    found = config.get("lora_parameters")
    for part in (config, found if isinstance(found, dict) else {}):
        rank = part.get("rank")
        if isinstance(rank, int | float) and not 1 <= rank <= _MOST_RANK:
            raise CheckpointError(
                f"{model}: the adapter's {CONFIG} has rank = {rank}, of at most {_MOST_RANK}: "
                "train or fetch it again.",
                model=model,
            )
    if found is None and kind == "vision" and isinstance(config.get("rank"), int):
        return  # the older format of mlx-vlm, before it adopted that of mlx-lm
    missing = [
        name
        for name in ("rank", "scale", "dropout")
        if not isinstance(found, dict) or not isinstance(found.get(name), int | float)
    ]
    if kind == "text" and not isinstance(config.get("num_layers"), int):
        missing.append("num_layers")
    if missing:
        raise CheckpointError(
            f"{model}: the adapter's {CONFIG} ({folder}) has no {', '.join(missing)}, which "
            f"{_LIBRARY[kind]} needs: is it an adapter of {_LIBRARY[kind]}?",
            model=model,
        )
