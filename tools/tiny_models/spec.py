"""The registry of tiny models: `@vision` and `@text` add one, `build` writes one to disk."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

Builder = Callable[..., None]
BuilderT = TypeVar("BuilderT", bound=Builder)
Shrinker = Callable[[], None]

_models: dict[str, TinyModel] = {}
_shrinkers: dict[str, Shrinker] = {}
_shrunk: set[str] = set()


@dataclass(frozen=True)
class TinyModel:
    """
    One tiny checkpoint.

    Attributes
    ----------
    name
        Name of the folder. Those of text models start with ``text-``.
    library
        The library that runs the checkpoint.
    architecture
        Module under ``mlx_vlm.models`` or ``mlx_lm.models``, after the library's remapping.
    build
        Writes the checkpoint into a folder.
    variant
        What differs from the first model of the architecture.
    most_used
        Whether the architecture is one of the ten that people use most.
    """

    name: str
    library: Literal["mlx-vlm", "mlx-lm"]
    architecture: str
    build: Callable[[Path], None]
    variant: str = ""
    most_used: bool = False


def vision(
    architecture: str, *, name: str = "", variant: str = "", most_used: bool = False
) -> Callable[[BuilderT], BuilderT]:
    """
    Register a builder of a checkpoint for mlx-vlm.

    Parameters
    ----------
    architecture
        Module under ``mlx_vlm.models``.
    name
        Name of the model. Without it, the architecture and the variant.
    variant
        What differs from the first model of the architecture.
    most_used
        Whether people use the architecture a lot.

    Returns
    -------
    Callable
        A decorator that returns the builder unchanged.
    """
    name = name or _joined(architecture, variant)
    return _registers("mlx-vlm", name, architecture, variant, most_used)


def text(
    architecture: str, *, name: str = "", variant: str = "", most_used: bool = False
) -> Callable[[BuilderT], BuilderT]:
    """
    Register a builder of a checkpoint for mlx-lm.

    Parameters
    ----------
    architecture
        Module under ``mlx_lm.models``.
    name
        Name of the model without ``text-``. Without it, the architecture and the variant.
    variant
        What differs from the first model of the architecture.
    most_used
        Whether people use the architecture a lot.

    Returns
    -------
    Callable
        A decorator that returns the builder unchanged.
    """
    name = "text-" + (name or _joined(architecture, variant)).removeprefix("text-")
    return _registers("mlx-lm", name, architecture, variant, most_used)


def vary(base: str, variant: str, **overrides: Any) -> None:
    """
    Register a variant of a model: the same builder with other keyword arguments.

    Parameters
    ----------
    base
        Name of a model that is registered already.
    variant
        What differs. Also the end of the name: ``text-llama`` and ``rope llama3`` make
        ``text-llama-rope-llama3``.
    **overrides
        Keyword arguments of the builder.
    """
    held = _models[base]
    build = partial(held.build, **overrides)
    _registers(held.library, _joined(base, variant), held.architecture, variant, False)(build)


def four_bit(base: str, *, group_size: int = 64) -> None:
    """
    Register the 4-bit variant of a model, ``<base>-4bit``.

    Parameters
    ----------
    base
        Name of a model that is registered already.
    group_size
        Number of weights that share a scale.
    """
    held = _models[base]

    def build(folder: Path) -> None:
        from tools.tiny_models.making import quantize

        held.build(folder)
        quantize(folder, held.library, group_size=group_size)

    _registers(held.library, f"{base}-4bit", held.architecture, "4-bit", False)(build)


def shrinks(architecture: str) -> Callable[[Shrinker], Shrinker]:
    """
    Register the patch that makes an architecture's hard-coded sizes small.

    Parameters
    ----------
    architecture
        Module under ``mlx_vlm.models``.

    Returns
    -------
    Callable
        A decorator that returns the patch unchanged.
    """

    def register(shrinker: Shrinker) -> Shrinker:
        _shrinkers[architecture] = shrinker
        return shrinker

    return register


def shrunk(architecture: str) -> None:
    """
    Make the sizes that mlx-vlm hard-codes for an architecture small, in this process.

    Call it before loading a checkpoint of the architecture. A second call does nothing, and so
    does a call for an architecture without hard-coded sizes.

    Parameters
    ----------
    architecture
        Module under ``mlx_vlm.models``.
    """
    _import_specs()
    if architecture in _shrinkers and architecture not in _shrunk:
        _shrinkers[architecture]()
        _shrunk.add(architecture)


def is_shrunk(architecture: str) -> bool:
    """
    Tell whether mlx-vlm hard-codes sizes of an architecture, so that `shrunk` changes them.

    Parameters
    ----------
    architecture
        Module under ``mlx_vlm.models``.

    Returns
    -------
    bool
        If true, a process that does not call `shrunk` cannot load the checkpoint.
    """
    _import_specs()
    return architecture in _shrinkers


def all_models() -> tuple[TinyModel, ...]:
    """
    List the models.

    Returns
    -------
    tuple of TinyModel
        In the order of their modules.
    """
    _import_specs()
    return tuple(_models.values())


def find(name: str) -> TinyModel:
    """
    Look a model up by name.

    Parameters
    ----------
    name
        For instance ``qwen2_vl`` or ``text-llama-mqa``.

    Returns
    -------
    TinyModel

    Raises
    ------
    KeyError
        If there is no model of that name.
    """
    _import_specs()
    return _models[name]


def build(model: TinyModel, folder: Path) -> None:
    """
    Write a checkpoint. What the folder held before is deleted.

    The checkpoint is written to a temporary folder and moved when it is complete, so that a
    failure leaves nothing.

    Parameters
    ----------
    model
        The model.
    folder
        Folder of the checkpoint itself.
    """
    shrunk(model.architecture)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        model.build(made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


@cache
def _import_specs() -> None:
    package = importlib.import_module("tools.tiny_models")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(("vision_", "text_")):
            importlib.import_module(f"tools.tiny_models.{module.name}")


def _joined(base: str, variant: str) -> str:
    return "-".join([base, *variant.replace(",", " ").split()])


def _registers(
    library: Literal["mlx-vlm", "mlx-lm"],
    name: str,
    architecture: str,
    variant: str,
    most_used: bool,
) -> Callable[[BuilderT], BuilderT]:
    def register(builder: BuilderT) -> BuilderT:
        if name in _models:
            raise ValueError(f"Two tiny models are named {name}.")
        _models[name] = TinyModel(name, library, architecture, builder, variant, most_used)
        return builder

    return register
