"""The files of a checkpoint: which of them a library reads, and whether they are complete."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.safetensors import Contents, contents
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

INDEX = "model.safetensors.index.json"
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model*",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece*.model",
)
_MOST_SHARDS = 10_000
_MOST_HEADERS = 96 * 2**20  # sum over all weight files; 21 MB for Kimi K2
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


def read_config(folder: Path, *, model: str) -> dict[str, Any]:
    """Read config.json.

    Raises
    ------
    CheckpointError
        When there is none, or it is not a JSON object with a model_type.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{model}: {folder} has no config.json: name the folder that holds config.json, "
            "the weights and the tokenizer.",
            model=model,
        )
    config = read_object(path, model=model)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            f"{model}: config.json names no model_type, so nothing can load it: "
            "is it the configuration of a model?",
            model=model,
        )
    if shown(model_type) != model_type:
        raise CheckpointError(
            f"{model}: config.json has an invalid model_type ({shown(model_type)}): "
            "is it the configuration of a model?",
            model=model,
        )
    _require_bits(config, model)
    return config


def _require_bits(config: dict[str, Any], model: str) -> None:
    """Refuse a quantization with an impossible number of bits or group size."""
    for key in ("quantization", "quantization_config"):
        found = config.get(key)
        if not isinstance(found, dict):
            continue
        for part in (found, *(value for value in found.values() if isinstance(value, dict))):
            bits, group = part.get("bits"), part.get("group_size")
            if isinstance(bits, int) and not 1 <= bits <= 64:
                what = f"bits = {bits}"
            elif isinstance(group, int) and (group == 0 or group > 2**31):
                what = f"group_size = {group}"
            else:
                continue
            raise CheckpointError(
                f"{model}: config.json has a {key} with {what}, which is impossible: fetch the "
                "model again.",
                model=model,
            )


def read_object(path: Path, *, model: str) -> dict[str, Any]:
    """Read a JSON file whose content must be an object.

    Raises
    ------
    CheckpointError
    """
    try:
        limits = strict_json.INDEX if path.name == INDEX else strict_json.CONFIG
        content = strict_json.read(path, limits)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{model}: {path.name} {error}: fetch the model again.", model=model
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{model}: {path.name} is not a JSON object: fetch the model again.", model=model
        )
    return content


def weights(folder: Path, kind: Kind, *, model: str, quick: bool = False) -> Contents:
    """Check every weight file that the library of this kind reads.

    With `quick`, headers that would take long to parse are refused.

    Returns
    -------
    Contents

    Raises
    ------
    CheckpointError
        When there are none, a shard is missing, or one is truncated or damaged.
    """
    files = _weight_files(folder, kind, _shards(folder, model=model))
    if not files:
        raise _no_weights(folder, kind, model=model)
    found = Contents(Counter(), 0, 0)
    for file in files:
        found += contents(file, model=model, quick=quick)
        if quick:
            strict_json.require_quick(found.header, model=model)
        if found.header > _MOST_HEADERS:
            raise CheckpointError(
                f"{model}: its weights have headers of more than {_MOST_HEADERS / 1e6:.0f} MB: "
                "fetch the model again.",
                model=model,
            )
    if not found.sizes:
        raise CheckpointError(
            f"{model}: {shown(files[0].name)} holds no tensors: fetch the model again.", model=model
        )
    return found


def require_tokenizer(folder: Path, *, model: str) -> None:
    """Refuse a folder whose tokenizer is missing or truncated.

    Raises
    ------
    CheckpointError
    """
    if not first_match(folder, _TOKENIZERS):
        raise CheckpointError(
            f"{model}: {folder} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json): "
            "copy the tokenizer files of the model into it.",
            model=model,
        )
    path = folder / "tokenizer.json"
    # Not parsed: that takes a third of a second for a large vocabulary.
    if path.is_file() and not _ends_with_brace(path):
        raise CheckpointError(
            f"{model}: tokenizer.json is cut short: fetch the model again.", model=model
        )


def is_complete(folder: Path) -> bool:
    """Return whether all weight files exist. After a cancelled download some are missing."""
    try:
        shards = _shards(folder, model=folder.name)
    except CheckpointError:
        return False
    return bool(shards) or any(folder.glob("*.safetensors"))


def _shards(folder: Path, *, model: str) -> list[Path]:
    """Return the files that the index names. mlx-vlm would silently skip a missing one."""
    index = folder / INDEX
    if not os.path.lexists(index):
        return []
    named = read_object(index, model=model).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise CheckpointError(
            f"{model}: {INDEX} has no weight_map: fetch the model again.", model=model
        )
    shards = sorted(set(named.values()))
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError(
            f"{model}: {INDEX} names more than {_MOST_SHARDS} weight files: fetch the model again.",
            model=model,
        )
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise CheckpointError(
            f"{model}: {INDEX} names {_listed(outside[:1])}, which is not in its folder: "
            "fetch the model again from a source that you trust.",
            model=model,
        )
    missing = [name for name in shards if not os.path.isfile(folder / name)]  # noqa: PTH113
    if missing:
        raise CheckpointError(
            f"{model}: {len(missing)} of {len(shards)} weight files are missing "
            f"({_listed(missing)}): fetch the model again.",
            model=model,
        )
    return [folder / name for name in shards]


def _weight_files(folder: Path, kind: Kind, shards: list[Path]) -> list[Path]:
    if kind == "text":
        # mlx-lm reads only these.
        return sorted(folder.glob("model*.safetensors"))
    return shards or [
        path
        for path in sorted(folder.glob("*.safetensors"))
        if not path.name.endswith("consolidated.safetensors")
    ]


def _no_weights(folder: Path, kind: Kind, *, model: str) -> CheckpointError:
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    pickles = first_match(folder, PICKLES)
    gguf = first_match(folder, ("*.gguf",))
    converter = "mlx_vlm" if kind == "vision" else "mlx_lm"
    if others:
        text = f"only {_listed(others)}, while model*.safetensors are read: rename or convert them"
    elif pickles:
        text = (
            f"only pickled weights ({pickles}), which can run code and are not read: "
            f"convert them with `python -m {converter} convert`, or fetch a safetensors version"
        )
    elif gguf:
        text = f"only {gguf}, and GGUF is not read: fetch the model's safetensors or MLX version"
    else:
        text = "no weights (*.safetensors): fetch the model again, completely"
    return CheckpointError(f"{model}: {folder} has {text}.", model=model)


def first_match(folder: Path, patterns: Iterable[str]) -> str | None:
    """Return the name of the first file in a folder that matches a pattern, or None."""
    return next((p.name for pattern in patterns for p in sorted(folder.glob(pattern))), None)


def _ends_with_brace(path: Path) -> bool:
    try:
        with strict_json.opened(path) as (file, size):
            file.seek(max(size - 64, 0))
            return file.read(64).rstrip().endswith(b"}")
    except UnreadableFileError:
        return False


def _listed(names: list[str]) -> str:
    return ", ".join(shown(repr(n) if not n.isprintable() else n) for n in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
