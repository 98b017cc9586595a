"""Signature of a loaded language model, by which the table in together.json knows models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.models.checkpoints.batch_support import Signature, text_part, traits

# MLX's own layers and adapters compute each row by itself, and so do this package's subclasses.
_PLAIN = ("mlx.nn.", "mlx_magic.")
_ADAPTERS = (".tuner.", ".trainer.")
_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads")


def signature(library: str, language_model: Any, config: Any, caches: Sequence[Any]) -> Signature:
    """Return the properties that decide whether a model's requests can be batched.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    language_model : mlx.nn.Module
    config : object
        Configuration of the whole model, as the library reads it, with its defaults.
    caches : sequence
        New caches of the language model, one per layer.
    """
    return Signature(
        library,
        tuple(sorted({name for m in language_model.modules() for name in _class_name(m)})),
        tuple(sorted({type(cache).__name__ for cache in leaf_caches(list(caches))})),
        traits(_language_config(language_model, config)),
    )


def _class_name(module: Any) -> Iterator[str]:
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    rotary = "rope" in cls.__name__.lower()
    if any(part in name for part in _ADAPTERS) or (name.startswith(_PLAIN) and not rotary):
        return
    # A quantized layer treats rows as the plain one does.
    yield name.replace("Quantized", "")


def _language_config(language_model: Any, config: Any) -> Mapping[str, Any]:
    """Return the configuration that has the numbers of heads, if there is one."""
    inner = getattr(language_model, "model", None)
    candidates = [
        getattr(owner, key, None)
        for owner in (language_model, inner)
        for key in ("args", "config")
        if owner is not None
    ]
    plain = [text_part(_plain(each)) for each in (*candidates, config) if each is not None]
    with_heads = (each for each in plain if any(key in each for key in _HEADS))
    return next(with_heads, plain[0] if plain else {})


def _plain(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        held = dict(config)
    elif dataclasses.is_dataclass(config):
        held = {f.name: getattr(config, f.name, None) for f in dataclasses.fields(config)}
        held.update(vars(config))
    else:
        held = dict(vars(config)) if hasattr(config, "__dict__") else {}
    return {key: _plain(value) if _is_part(value) else value for key, value in held.items()}


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )
