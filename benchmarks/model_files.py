"""Files of a model's folder: configurations, weights, and the words of a tokenizer."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping."""
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def write_json(path: Path, held: Mapping[str, Any]) -> None:
    """Write a mapping."""
    path.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def update_json(path: Path, **entries: Any) -> None:
    """Set entries of a mapping in a file."""
    write_json(path, {**read_json(path), **entries})


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights."""
    return sorted(folder.glob("*.safetensors"))


def extend(vocabulary: dict[str, int], size: int, *, space: str = "Ġ") -> None:
    """Add made-up words until all numbers below `size` have one, as detokenizers need them.

    Parameters
    ----------
    vocabulary : dict
        Numbers by word.
    size : int
    space : str
        How the vocabulary writes the space before a word.
    """
    missing = sorted(set(range(size)) - set(vocabulary.values()))
    words = (
        space + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4)
    )
    unknown = (word for word in words if word not in vocabulary)
    vocabulary.update(zip(unknown, missing, strict=False))
