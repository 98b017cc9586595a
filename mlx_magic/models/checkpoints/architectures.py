"""The architectures of the installed libraries, read from their source without importing them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_magic.errors import UnsupportedModelError

Kind = Literal["vision", "text"]

VISION_LIBRARY = "mlx_vlm"
TEXT_LIBRARY = "mlx_lm"


@dataclass(frozen=True)
class Library:
    """The architectures of a library, as its folder shows them.

    Attributes
    ----------
    models : Path
        Folder with one module or package for each architecture.
    renamed : mapping
        The library's remapping of model_type to module.
    """

    models: Path
    renamed: Mapping[str, str]

    def module(self, model_type: str) -> Path | None:
        """Return the module or package of an architecture, or None."""
        # The libraries import a module of this name: it must not be a path.
        if not re.fullmatch(r"[\w-]+", model_type):
            return None
        package = self.models / model_type
        if (package / "__init__.py").is_file():
            return package
        file = self.models / f"{model_type}.py"
        if file.is_file() and re.search(r"\bModelArgs\b", _text(file)):
            return file
        return None


_REMAPPING = re.compile(r"^MODEL_REMAPPING\b[^={]*=\s*\{(.*?)\}", re.MULTILINE | re.DOTALL)
_PAIR = re.compile(r"""["']([^"']+)["']\s*:\s*["']([^"']+)["']""")


@functools.cache
def library(name: str) -> Library | None:
    """Find an installed library without importing it.

    Parameters
    ----------
    name : str
        Import name, ``"mlx_vlm"`` or ``"mlx_lm"``.

    Returns
    -------
    Library or None
        None when it is not installed, or has an unknown layout.
    """
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        models, source = Path(folder, "models"), Path(folder, "utils.py")
        if (models / "__init__.py").is_file() and source.is_file():
            return Library(models, _remapping(source))
    return None


def knows(name: str, config: Mapping[str, Any]) -> bool | None:
    """Return whether a library has the architecture of a config.json.

    Returns
    -------
    bool or None
        None if unknown.
    """
    found = library(name)
    return None if found is None else found.module(_module_name(name, found, config)) is not None


def is_visual(config: Mapping[str, Any]) -> bool:
    """Return whether only mlx-vlm has an architecture, and with a vision encoder.

    Some configurations (molmo, moondream) do not mention a vision encoder.
    """
    if knows(TEXT_LIBRARY, config):
        return False
    sources = vision_sources(config)
    return any("VisionConfig" in sources.get(name, "") for name in ("config.py", "__init__.py"))


def vision_sources(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return mlx-vlm's source files for an architecture, by file name; empty if unknown."""
    found = library(VISION_LIBRARY)
    if found is None:
        return {}
    package = found.module(_module_name(VISION_LIBRARY, found, config))
    return {} if package is None else _sources(package)


def require_known(kind: Kind, config: Mapping[str, Any], *, model: str) -> None:
    """Refuse an architecture that the library of its kind does not have.

    Parameters
    ----------
    kind : {"vision", "text"}
    config : mapping
        The parsed config.json.
    model : str
        Name of the model, for the error.

    Raises
    ------
    UnsupportedModelError
    """
    needed, other = VISION_LIBRARY, TEXT_LIBRARY
    if kind == "text":
        needed, other = other, needed
    # An unknown result is not refused: the library will raise its own error.
    if knows(needed, config) is not False:
        return
    model_type = config.get("model_type")
    if knows(other, config):
        raise UnsupportedModelError(
            f"{model}: {_versioned(needed)} does not know model_type {model_type!r} as a {kind} "
            f"model ({_versioned(other)} has one of that name): choose another model.",
            model=model,
        )
    raise UnsupportedModelError(
        f"{model}: neither {_versioned(VISION_LIBRARY)} nor {_versioned(TEXT_LIBRARY)} knows "
        f"model_type {model_type!r}: update them, or choose another model.",
        model=model,
    )


def module_name(kind: Kind, config: Mapping[str, Any]) -> str:
    """Return the name of the library's module for a config.json."""
    name = VISION_LIBRARY if kind == "vision" else TEXT_LIBRARY
    found = library(name)
    return str(config.get("model_type")) if found is None else _module_name(name, found, config)


def _module_name(name: str, found: Library, config: Mapping[str, Any]) -> str:
    model_type = str(config.get("model_type"))
    if name == VISION_LIBRARY:
        model_type = model_type.lower()
    return found.renamed.get(model_type, model_type)


@functools.cache
def _sources(package: Path) -> Mapping[str, str]:
    files = sorted(package.glob("*.py")) if package.is_dir() else [package]
    return {file.name: _text(file) for file in files}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _remapping(source: Path) -> Mapping[str, str]:
    """Read MODEL_REMAPPING out of a library's utils.py.

    Not with `ast`: Python 3.11 cannot build two syntax trees at the same time, and IPython may
    be parsing the next cell on another thread (SystemError, observed with ten parallel requests).
    """
    remapping = _REMAPPING.search(_text(source))
    return dict(_PAIR.findall(re.sub(r"#.*", "", remapping[1]))) if remapping else {}


def _versioned(name: str) -> str:
    distribution = name.replace("_", "-")
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} (not installed)"
