"""How many tokens a model can read and write in one conversation, as its config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_PARTS = ("text_config", "llm_config", "language_config", "llm", "language_model")
"""Keys of config.json that hold the configuration of the language model."""

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "model_max_length",
)
_UNSCALED = frozenset({"linear", "dynamic"})
"""Scalings of rotary positions whose ``max_position_embeddings`` is that before the scaling."""


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the context of a model, in tokens; None if its configuration does not say.

    Parameters
    ----------
    config : mapping
        The parsed config.json.
    """
    for part in (*(config.get(key) for key in TEXT_PARTS), config):
        if isinstance(part, Mapping) and (length := _length(part)) is not None:
            return length
    return None


def _length(config: Mapping[str, Any]) -> int | None:
    length = next((config[key] for key in _KEYS if _is_count(config.get(key))), None)
    if length is None:
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return int(length)
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor >= 1:
        return int(length)
    if isinstance(original, int) and _is_count(original):
        # Some families give the length before the scaling, others after it.
        return max(int(length), int(original * factor))
    kind = scaling.get("rope_type", scaling.get("type"))
    # Gemma 3 scales linearly, too, but gives the length after it.
    gemma = str(config.get("model_type", "")).startswith("gemma3")
    return int(length * factor) if kind in _UNSCALED and not gemma else int(length)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
