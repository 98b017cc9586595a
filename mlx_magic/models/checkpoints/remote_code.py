"""Finds the code that a checkpoint would make the libraries run, and refuses it.

mlx-vlm turns ``trust_remote_code`` on by itself for many architectures, so that passing False to
it does not protect. Therefore a checkpoint's files are read first, and a checkpoint that would run
code is not passed to a library without permission.
"""

from __future__ import annotations

import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError, UntrustedCodeError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import architectures, strict_json, tokenizer_file
from mlx_magic.models.checkpoints.strict_json import JsonLimits, UnreadableFileError
from mlx_magic.models.upstream_checks import Mechanism

FETCHED_CODE = Mechanism("the search for code that mlx-vlm fetches itself", library="mlx-vlm")
"""Otherwise models that `_from_architecture` cannot vouch for are refused."""

# A call that names a repository itself: by a constant of the module, or as organization/name.
_NAMES_REPOSITORY = re.compile(
    r"""(?:from_pretrained|hf_hub_download|snapshot_download)\(\s*(?:repo_id\s*=\s*)?"""
    r"""(?:[A-Z][A-Z0-9_]+\b|["'][\w.-]+/[\w.-]+["'])"""
)
_FETCHES = "moondream3"  # an architecture of which mlx-vlm fetches code
_OF_IMAGES = re.compile(r"vision|visual|image|mm_|embd_layer|thinker")

# Large vocabularies, which no library reads as a configuration.
_VOCABULARY_FILES = frozenset({"tokenizer.json", "vocab.json", "tekken.json"})
# Files of a training run: no library reads them to load a model, and they contain NaN.
_UNREAD = frozenset(
    {"trainer_state.json", "train_results.json", "eval_results.json", "all_results.json"}
)
_TEXT_SUFFIXES = (".model", ".tiktoken", ".txt", ".jsonl")
_MOST_FILES = 2000
_MOST_BYTES = 160 * 2**20
_MOST_ADDED = 50_000  # Orpheus has 28,672, one for each sound
_MOST_EXTRA = 8_000  # transformers' time is quadratic in the number of these
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
# transformers reads tokenizer.4.0.0.json instead of tokenizer.json, depending on its version.
_VERSION = re.compile(r"tokenizer\..*\.json", re.DOTALL)
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


def wanted_code(folder: Path, *, model: str | None = None, quick: bool = False) -> tuple[str, ...]:
    """List the code that a checkpoint would make mlx-vlm, mlx-lm or transformers run.

    Checked are ``model_file`` in config.json (imported as Python), ``auto_map`` in any JSON file,
    nested or in a direct subfolder (transformers imports the class that it names, even from
    another repository), and architectures for which mlx-vlm trusts the code of a repository that
    it chooses. Not checked are pickled weights, which no library loads and which are refused as
    weights; ``custom_generate/``, which only PyTorch models run; and chat templates, which are
    rendered in our sandbox (`backends.chat_templates`) even with permission.

    Parameters
    ----------
    folder : Path
        The checkpoint. Its files are read, nothing is imported.
    model : str, optional
        Name of the model, for the error; the folder's name if left out.
    quick : bool
        For a list: vocabularies are not read, since they cannot name code.

    Returns
    -------
    tuple of str
        One line each, such as ``"config.json: model_file = 'model.py'"``; empty if it runs none.

    Raises
    ------
    CheckpointError
        A file that a library would read cannot be read here, so that its code is unknown.
    """
    config: dict[str, Any] = {}
    wanted: list[str] = []
    total = 0
    for path in _files(folder, model or folder.name):
        name = path.relative_to(folder).as_posix()
        try:
            if (
                quick
                and not _folded(path.name).endswith(_TEXT_SUFFIXES)
                and not _is_data(path.name)
            ):
                strict_json.require_quick(total + _size(path), model=model or folder.name)
            content, size = _read_checked(path, quick=quick)
        except UnreadableFileError as error:
            raise _unreadable(model or folder.name, name, str(error)) from error
        total += size
        if total > _MOST_BYTES:
            raise _unreadable(
                model or folder.name, name, "makes its configuration and vocabulary too large"
            )
        if path.parent == folder and path.name == "config.json" and isinstance(content, dict):
            config = content
            if config.get("model_file") is not None:
                wanted.append(f"config.json: model_file = {_short(config['model_file'])}")
        wanted += [f"{shown(name)}: {_printable(line)}" for line in _auto_maps(content)]
    wanted += _from_architecture(config)
    return tuple(wanted)


def limits_of(name: str) -> JsonLimits | None:
    """Return the limits of a file that the libraries read besides the weights.

    The case of names is ignored, as on some file systems.

    Parameters
    ----------
    name : str
        Name of the file, with or without its folder.

    Returns
    -------
    JsonLimits or None
        None for a file that no library reads.
    """
    name = _folded(name.rpartition("/")[2])
    if name in _UNREAD:
        return None
    if _is_data(name) or name.endswith(_TEXT_SUFFIXES):
        return strict_json.VOCABULARY
    if name.endswith(".index.json"):
        return strict_json.INDEX
    if name.endswith(".json"):
        return strict_json.CONFIG
    return strict_json.TEMPLATE if name.endswith(".jinja") else None


def _read_checked(path: Path, *, quick: bool) -> tuple[Any, int]:
    """Check a file; return its content if it is a configuration, and its size.

    Raises
    ------
    UnreadableFileError
    """
    name, limits = _folded(path.name), limits_of(path.name)
    assert limits is not None
    with strict_json.opened(path) as (_, size):
        pass
    if name.endswith(_TEXT_SUFFIXES):
        if size > limits.nbytes:
            raise UnreadableFileError(f"is too large ({size / 1e6:.1f} MB)")
        return None, size
    if name.endswith(".jinja"):
        strict_json.text(path, limits)
        return None, size
    if not _is_data(name):
        content = strict_json.read(path, limits)
        _require_few_special_tokens(name, content)
        # No library looks for code in an index. It is parsed only to be checked.
        return ({} if name.endswith(".index.json") else content), size
    if quick and size <= limits.nbytes:
        return None, 0  # a vocabulary cannot name code
    _scan(path, limits)
    return None, size


def _is_data(name: str) -> bool:
    """Return whether a file is a vocabulary, by its name without the folder."""
    name = _folded(name)
    return name in _VOCABULARY_FILES or _VERSION.fullmatch(name) is not None


def _require_few_special_tokens(name: str, content: Any) -> None:
    """Refuse too many added or special tokens, and tokenizer files outside the folder.

    Raises
    ------
    UnreadableFileError
    """
    if not isinstance(content, dict):
        return
    decoder = content.get("added_tokens_decoder")
    for added in (content if name == "added_tokens.json" else None, decoder):
        if isinstance(added, dict) and len(added) > _MOST_ADDED:
            raise UnreadableFileError(f"adds more than {_MOST_ADDED} tokens to its vocabulary")
    extra = [content[key] for key in _EXTRA if isinstance(content.get(key), list | dict)]
    named = sum(key.endswith("_token") for key in content)
    if named + sum(map(len, extra)) > _MOST_EXTRA:
        raise UnreadableFileError(f"names more than {_MOST_EXTRA} special tokens")
    files = content.get("fast_tokenizer_files")
    for file in files if isinstance(files, list) else ():
        if isinstance(file, str) and (set(file) & set("/\\") or file == ".."):
            raise UnreadableFileError("names a tokenizer outside its folder")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


_SCANNED: set[tuple[str, int, int, int, int]] = set()


def _scan(path: Path, limits: JsonLimits) -> None:
    """Check a vocabulary, once for each state of the file: it takes a third of a second."""
    found = path.stat()
    key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _SCANNED:
        raw, without_strings = strict_json.scan(path, limits)
        _require_few_added_tokens(raw)
        if _folded(path.name).startswith("tokenizer."):
            tokenizer_file.require_bounded(raw, without_strings)
        if len(_SCANNED) > 1000:
            _SCANNED.clear()
        _SCANNED.add(key)


def _require_few_added_tokens(raw: bytes) -> None:
    """Refuse a tokenizer with too many added tokens: each takes transformers 80 µs.

    Raises
    ------
    UnreadableFileError
    """
    # Letters are written as escapes only to hide a key from being counted.
    if max(raw.count(b'"lstrip"'), len(_ESCAPED_LETTER.findall(raw))) > _MOST_ADDED:
        raise UnreadableFileError(f"adds more than {_MOST_ADDED} tokens to its vocabulary")


def _files(folder: Path, model: str) -> list[Path]:
    """Return the files in the folder and its direct subfolders that a library may read."""
    found: list[Path] = []
    entries = 0
    for parent in (folder, *_subfolders(folder)):
        try:
            with os.scandir(parent) as listing:
                for entry in listing:
                    entries += 1
                    if entries > _MOST_FILES:
                        raise _unreadable(model, parent.name, f"has more than {_MOST_FILES} files")
                    if limits_of(entry.name) is not None and not _is_folder(Path(entry.path)):
                        found.append(parent / entry.name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise _unreadable(model, parent.name, f"cannot be read ({reason})") from error
    return sorted(found, key=_sort_key(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as listing:
            return [
                folder / e.name
                for e, _ in zip(listing, range(_MOST_FILES), strict=False)
                if _is_folder(Path(e.path)) and not e.name.startswith(".")
            ]
    except OSError:
        return []  # `_files` reports the error when it lists the folder


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 -- Path.is_dir raises on a loop of links


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _unreadable(model: str, name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(model)}: {shown(name)} {why}: fetch the model again from a source that you trust.",
        model=model,
    )


def require_trust(wanted: tuple[str, ...], *, model: str, allowed: bool) -> None:
    """Refuse a checkpoint that would run code, unless this load allows it.

    Parameters
    ----------
    wanted : tuple of str
        From `wanted_code`.
    model : str
        Name of the model, for the error.
    allowed : bool
        Whether the user allowed code for this load.

    Raises
    ------
    UntrustedCodeError
        Names the code, and how to allow it.
    """
    if not wanted or allowed:
        return
    listed = "; ".join(wanted[:3])
    if len(wanted) > 3:
        listed += f"; and {len(wanted) - 3} more"
    raise UntrustedCodeError(
        f"{model} wants to run its own code ({listed}), and nothing of it was run: read it, and if "
        "you trust it, load it with --trust-remote-code.",
        model=model,
        wanted=wanted,
    )


def _auto_maps(value: Any, path: str = "") -> Iterator[str]:
    """Find auto_map at any depth: configurations may be nested in others."""
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
        key_path = f"{path}.auto_map" if path else "auto_map"
        if isinstance(found, dict):
            for name, target in found.items():
                yield f"{key_path} {name} = {_short(target)}"
        elif found:
            yield f"{key_path} = {_short(found)}"


def _from_architecture(config: Mapping[str, Any]) -> list[str]:
    """List the code of other repositories that mlx-vlm would run for this architecture."""
    sources = architectures.vision_sources(config)
    named = f"config.json: model_type = {_short(config.get('model_type'))}"
    if any(map(_fetches_code, sources.values())):
        return [
            f"{named}, for which mlx-vlm may fetch a tokenizer from another repository and run "
            "its code"
        ]
    if not config or FETCHED_CODE.is_on(_is_found) or _is_harmless(config, sources):
        return []
    return [f"{named}, for which it is unknown what code mlx-vlm fetches: {FETCHED_CODE.off}"]


def _fetches_code(source: str) -> bool:
    return "trust_remote_code" in source and _NAMES_REPOSITORY.search(source) is not None


def _is_found(_: object) -> bool:
    """Whether the search finds the code that mlx-vlm is known to fetch."""
    if architectures.library(architectures.VISION_LIBRARY) is None:
        return importlib.util.find_spec(architectures.VISION_LIBRARY) is None
    known = architectures.vision_sources({"model_type": _FETCHES})
    return any(map(_fetches_code, known.values()))


def _is_harmless(config: Mapping[str, Any], sources: Mapping[str, str]) -> bool:
    """Whether a model cannot make mlx-vlm fetch code, whatever the search misses."""
    if sources:
        return not any(
            re.search(r"trust_remote_code|hf_hub_download|snapshot_download", s)
            for s in sources.values()
        )
    # mlx-lm loads text models, and fetches no code.
    is_text = not any(map(_OF_IMAGES.search, map(str, config)))
    return is_text and architectures.knows(architectures.TEXT_LIBRARY, config) is True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _printable(text: str) -> str:
    """Return untrusted text as one printable line."""
    text = text if text.isprintable() else repr(text)
    return shown(text, 300)


def _sort_key(folder: Path) -> Any:
    """Return a sort key: files of the folder itself first, config.json before the others."""

    def key(path: Path) -> tuple[bool, bool, str]:
        return path.parent != folder, path.name != "config.json", str(path)

    return key
