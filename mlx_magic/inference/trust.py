"""What a checkpoint would make the libraries run, and the refusal of it.

mlx-vlm turns ``trust_remote_code`` on by itself for many architectures: passing
False to it protects nobody. So a checkpoint is read first, and one that asks for
code never reaches a library without permission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_magic.errors import UntrustedCodeError
from mlx_magic.inference import architectures

# Large, and never read as a configuration by any of the libraries.
_DATA = frozenset({"tokenizer.json", "vocab.json", "tekken.json"})


def wanted_code(folder: Path) -> tuple[str, ...]:
    """List everything a checkpoint would make mlx-vlm, mlx-lm or transformers run.

    Looked at are: ``model_file`` in config.json (imported as Python), ``auto_map`` in any
    JSON file, nested or in a direct subfolder (transformers imports the class it names, even
    from another repository), and architectures for which mlx-vlm trusts the code of a repository
    of its own choice. Not here: pickled weights, which no library would load, and which are
    refused as weights; ``custom_generate/``, which only PyTorch models run; chat templates, which
    are rendered in a sandbox of ours (`backends.chat_template`), with permission too.

    Parameters
    ----------
    folder : Path
        The checkpoint. Only JSON files are read, nothing is imported.

    Returns
    -------
    tuple of str
        One line each, such as ``"config.json: model_file = 'model.py'"``; empty is harmless.
    """
    config = parsed(folder / "config.json")
    config = config if isinstance(config, dict) else {}
    wanted: list[str] = []
    if config.get("model_file") is not None:
        wanted.append(f"config.json: model_file = {config['model_file']!r}")
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")], key=_place(folder)):
        if path.name in _DATA or path.name.endswith(".index.json"):
            continue
        name = path.relative_to(folder).as_posix()
        wanted += [f"{name}: {_printable(line)}" for line in _auto_maps(parsed(path))]
    wanted += _from_architecture(config)
    return tuple(wanted)


def require_trust(wanted: tuple[str, ...], *, model: str, allowed: bool) -> None:
    """Refuse a checkpoint that asks to run code, unless this load allows it.

    Parameters
    ----------
    wanted : tuple of str
        From `wanted_code`.
    model : str
        Name of the model, for the error.
    allowed : bool
        Whether the person said so for this load.

    Raises
    ------
    UntrustedCodeError
        Names what it wanted, and how to allow it.
    """
    if not wanted or allowed:
        return
    shown = "; ".join(wanted[:3])
    if len(wanted) > 3:
        shown += f"; and {len(wanted) - 3} more"
    raise UntrustedCodeError(
        f"{model} wants to run its own code ({shown}), and nothing of it was run: read it, and if "
        "you trust it, load it with --trust-remote-code.",
        model=model,
        wanted=wanted,
    )


def _auto_maps(value: Any, path: str = "") -> Iterator[str]:
    """Find auto_map at any depth: a part's configuration may be written into its parent's."""
    stack: list[tuple[str, Any]] = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, list):
            stack += [(f"{path}[{i}]", item) for i, item in reversed([*enumerate(value)])]
        if not isinstance(value, dict):
            continue
        for key, item in reversed(value.items()):
            if key != "auto_map":
                stack.append((f"{path}.{key}" if path else key, item))
        found = value.get("auto_map")
        place = f"{path}.auto_map" if path else "auto_map"
        if isinstance(found, dict):
            for name, target in found.items():
                yield f"{place} {name} = {_short(target)}"
        elif found:
            yield f"{place} = {_short(found)}"


def _from_architecture(config: Mapping[str, Any]) -> list[str]:
    """Name what mlx-vlm's own code for this architecture would run."""
    sources = architectures.vision_sources(config)
    if not any(re.search(r"\bTOKENIZER_REPO\b", text) for text in sources.values()):
        return []
    return [
        f"config.json: model_type = {config.get('model_type')!r}, for which mlx-vlm may fetch a "
        "tokenizer from another repository and run its code"
    ]


def parsed(path: Path) -> Any:
    """Parse a JSON file; None where the libraries could not parse it either."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _printable(text: str) -> str:
    """Keep a key that a stranger wrote from breaking the line or driving the terminal."""
    return text if text.isprintable() else repr(text)


def _place(folder: Path) -> Any:
    """Sort key: files of the folder itself first, config.json before the others."""

    def key(path: Path) -> tuple[bool, bool, str]:
        return path.parent != folder, path.name != "config.json", str(path)

    return key
