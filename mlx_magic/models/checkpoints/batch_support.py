"""Which models can batch requests, from the comparisons that `make models` has recorded."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mlx_magic.models.checkpoints import architectures
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.config_limits import HEADS, KV_HEADS

TABLE = "together.json"
"""File beside this module; written by `make models`."""

UNTESTED = "untested: its batched answers were never compared with single ones"

Traits = Mapping[str, str]

_ROPES = ("rope_scaling", "rope_parameters")
_KEYS = {
    "window": ("sliding_window", "attention_chunk_size"),
    "softcap": ("attn_logit_softcapping",),
    "cross": ("cross_attention_layers",),
}
_SPELLINGS = {"su": "longrope"}


@dataclass(frozen=True, slots=True)
class Signature:
    """Properties of a loaded language model that decide whether it can be batched.

    Attributes
    ----------
    library : str
        ``"mlx-vlm"`` or ``"mlx-lm"``.
    classes : tuple of str
        Names of the library's classes in the model, sorted.
    caches : tuple of str
        Names of the classes of its KV caches, sorted.
    traits : mapping
        See `traits`.
    """

    library: str
    classes: tuple[str, ...]
    caches: tuple[str, ...]
    traits: Traits


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model can batch requests.

    Attributes
    ----------
    together : bool
    chunks : bool
        Whether prefill may use smaller chunks than the library's.
    why : str
        Why requests are not batched, as text; empty if they are.
    """

    together: bool
    chunks: bool
    why: str = ""

    def __str__(self) -> str:
        return "answers them together" if self.together else f"answers one at a time: {self.why}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tiny checkpoint that was compared with its library.

    Attributes
    ----------
    name : str
        Name of the checkpoint in `make models`.
    architecture : str
        The library's module for it.
    signature : Signature
    verdict : Verdict
    """

    name: str
    architecture: str
    signature: Signature
    verdict: Verdict


@functools.cache
def table() -> tuple[Entry, ...]:
    """Return the recorded comparisons; the file is read once."""
    text = resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")
    return tuple(entry_from(row) for row in json.loads(text)["models"])


def entry_from(row: Mapping[str, Any]) -> Entry:
    """Return a row of the file as an entry."""
    return Entry(
        row["name"],
        row["architecture"],
        Signature(row["library"], tuple(row["classes"]), tuple(row["caches"]), row["traits"]),
        Verdict(row["together"], row["chunks"], row["why"]),
    )


def verdict(
    signature: Signature, architecture: str, entries: Iterable[Entry] | None = None
) -> Verdict:
    """Return the verdict for a loaded model.

    If several checkpoints have the same signature, the strictest verdict applies.

    Parameters
    ----------
    signature : Signature
    architecture : str
        The library's module for the whole model; several modules may share a language model.
    entries : iterable of Entry, optional
        Used instead of `table`.
    """
    known = table() if entries is None else entries
    found = [
        entry.verdict
        for entry in known
        if entry.architecture == architecture and entry.signature == signature
    ]
    return _strictest(found) if found else Verdict(False, False, UNTESTED)


def expected(kind: Kind, config: Mapping[str, Any]) -> Verdict | None:
    """Return the verdict that a model is expected to get when it is loaded.

    Parameters
    ----------
    kind : {"vision", "text"}
    config : mapping
        The parsed config.json. The library's defaults for missing keys are not known here.

    Returns
    -------
    Verdict or None
        None if it does not follow from config.json.
    """
    library = "mlx-vlm" if kind == "vision" else "mlx-lm"
    architecture = architectures.module_name(kind, config)
    if config.get("model_file") is not None:
        return Verdict(False, False, UNTESTED)
    text = text_part(config)
    explicit = {key: value for key, value in traits(text).items() if _is_explicit(text, key)}
    candidates = [
        entry
        for entry in table()
        if entry.signature.library == library and entry.architecture == architecture
    ]
    if not candidates:
        return Verdict(False, False, UNTESTED)
    found = [
        each.verdict for each in candidates if explicit.items() <= each.signature.traits.items()
    ]
    if not found:
        # The library may ignore what the file says.
        return None
    return found[0] if len({each.together for each in found}) == 1 else None


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the language model."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        part = config.get(key)
        if isinstance(part, Mapping) and part:
            part = {k: v for k, v in part.items() if v is not None}
            return text_part({**config, key: None, **part})
    return config


def traits(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the traits of a language model on which the libraries' batching depends.

    Parameters
    ----------
    config : mapping
        The configuration, with or without the library's defaults.

    Returns
    -------
    dict
        ``heads`` ("mha": as many key-value heads as heads, "gqa": fewer, "mqa": one, "unknown"),
        ``rope`` (its types), ``window``, ``softcap``, ``cross`` and ``query scale`` ("yes", "no").
    """
    ropes = _ropes(config)
    kinds = sorted({_rope_kind(rope) for rope in ropes}) or ["default"]
    window = config.get("sliding_window")
    sliding = (
        isinstance(window, int) and window > 0 and config.get("use_sliding_window") is not False
    )
    return {
        "heads": _heads(config),
        "rope": "+".join(kinds),
        "window": _yes_no(sliding or bool(config.get("attention_chunk_size"))),
        "softcap": _yes_no(bool(config.get("attn_logit_softcapping"))),
        "cross": _yes_no(bool(config.get("cross_attention_layers"))),
        "query scale": _yes_no(any("llama_4_scaling_beta" in rope for rope in ropes)),
    }


def _is_explicit(config: Mapping[str, Any], trait: str) -> bool:
    """Return whether a configuration sets a trait; otherwise the library's default applies."""
    if trait == "heads":
        return _heads(config) != "unknown"
    if trait in ("rope", "query scale"):
        return bool(_ropes(config))
    return any(key in config for key in _KEYS[trait])


def _strictest(verdicts: Sequence[Verdict]) -> Verdict:
    unbatched = [each for each in verdicts if not each.together]
    first = unbatched[0] if unbatched else verdicts[0]
    return Verdict(first.together, all(each.chunks for each in verdicts), first.why)


def _heads(config: Mapping[str, Any]) -> str:
    heads, kv_heads = _first(config, HEADS), _first(config, KV_HEADS)
    if config.get("multi_query") is True and kv_heads is None:
        kv_heads = 1
    if heads is None or kv_heads is None:
        return "unknown"
    if kv_heads == heads:
        return "mha"
    return "mqa" if kv_heads == 1 else "gqa"


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    for key in keys:
        value = config.get(key)
        # Some configurations have a number for each layer.
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all RoPE configurations; some models have one for each type of layer."""
    found: list[Mapping[str, Any]] = []
    for key in _ROPES:
        value = config.get(key)
        if isinstance(value, Mapping) and value:
            inner = [each for each in value.values() if isinstance(each, Mapping)]
            found += inner or [value]
    return found


def _rope_kind(rope: Mapping[str, Any]) -> str:
    if rope.get("mrope_section"):
        return "mrope"
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return _SPELLINGS.get(str(kind), str(kind))


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
