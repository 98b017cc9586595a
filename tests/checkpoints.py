"""Small checkpoints for tests: a good one, and every way to be broken or hostile."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VISION_CONFIG: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": 4,
    "text_config": {"model_type": "llama", "hidden_size": 8},
    "vision_config": {"hidden_size": 8, "image_size": 16, "patch_size": 8},
}
TEXT_CONFIG: dict[str, Any] = {"model_type": "llama", "hidden_size": 8, "vocab_size": 16}

_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None
) -> Path:
    """Write zeros: name -> (dtype, shape). The default is 64 + 32 bytes."""
    tensors = tensors or {"model.a": ("F32", (4, 4)), "model.b": ("F16", (16,))}
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return write_raw_safetensors(path, header, end)


def write_raw_safetensors(path: Path, header: object, size: int) -> Path:
    """Write any header, valid or not, and `size` bytes of data."""
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    return path


def good(folder: Path, config: Mapping[str, Any] | None = None) -> Path:
    """Write a folder that passes inspection. It has no real weights and does not load."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", VISION_CONFIG if config is None else config)
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_safetensors(folder / "model.safetensors")
    return folder


def good_text(folder: Path) -> Path:
    return good(folder, TEXT_CONFIG)


def without_config(folder: Path) -> Path:
    (good(folder) / "config.json").unlink()
    return folder


def without_weights(folder: Path) -> Path:
    (good(folder) / "model.safetensors").unlink()
    return folder


def without_tokenizer(folder: Path) -> Path:
    (good(folder) / "tokenizer.json").unlink()
    return folder


def cut_short(folder: Path, *, keep: int = -10) -> Path:
    """Cut the weight file: `keep` as in a slice."""
    path = good(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    return folder


def with_missing_shard(folder: Path) -> Path:
    (good(folder) / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = {"model.a": 1, "model.b": 1, "model.c": 2}
    index = {name: f"model-{number:05d}-of-00002.safetensors" for name, number in files.items()}
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    return folder


def unknown_architecture(folder: Path) -> Path:
    return good(folder, {**VISION_CONFIG, "model_type": "hologram9000"})


def update_json(path: Path, changes: Mapping[str, Any]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return write_json(path, {**content, **changes})


def mark_of(folder: Path) -> Path:
    """Return the file that appears beside a hostile checkpoint if its code ever runs."""
    return folder.parent / f"{folder.name}.ran"


def write_evil_code(folder: Path, name: str = "evil.py") -> Path:
    """Write Python that leaves the mark; with any class that a library may ask it for."""
    path = folder / name
    path.write_text(
        f"import pathlib\npathlib.Path({str(mark_of(folder))!r}).write_text(__name__)\n"
        "class Evil:\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, *args, **kwargs):\n"
        "        return cls()\n"
        "    register_for_auto_class = from_pretrained\n"
        "Model = ModelArgs = ModelConfig = Evil\n",
        encoding="utf-8",
    )
    return path


def with_model_file(folder: Path) -> Path:
    """Ask mlx-vlm and mlx-lm to import evil.py, in a folder that is otherwise as it was."""
    write_evil_code(folder)
    update_json(folder / "config.json", {"model_file": "evil.py"})
    return folder


def with_auto_map(
    folder: Path, file: str = "tokenizer_config.json", auto_class: str = "AutoTokenizer"
) -> Path:
    """Ask transformers to import evil.py, in a folder that is otherwise as it was."""
    write_evil_code(folder)
    target: object = ["evil.Evil", None] if auto_class == "AutoTokenizer" else "evil.Evil"
    update_json(folder / file, {"auto_map": {auto_class: target}})
    return folder


BROKEN = {
    "config.json": without_config,
    "no weights": without_weights,
    "tokenizer": without_tokenizer,
    "cut short": cut_short,
    "missing": with_missing_shard,
    "hologram9000": unknown_architecture,
}
"""Builder by a word that its error must contain."""
