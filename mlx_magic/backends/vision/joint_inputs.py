"""Inputs of several prompts that share a prefill, cut to the columns of one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_magic.backends.batching.forward import Inputs, Row

EMBEDS = "inputs_embeds"

BY_TOKEN = frozenset({EMBEDS, "per_layer_inputs", "position_ids", "visual_pos_masks"})
"""Inputs with an entry per token. Embeddings begin after the cached prefix, the others with it."""

BY_ROW = frozenset({"rope_deltas"})
"""Inputs with an entry per prompt."""

BY_IMAGE_TOKEN = frozenset({"deepstack_visual_embeds"})
"""Inputs with an entry per image token, which `IMAGE_TOKENS` marks."""

IMAGE_TOKENS = "visual_pos_masks"

JOINED = BY_TOKEN | BY_ROW | BY_IMAGE_TOKEN
"""Inputs that are cut here instead of by the language model, which would cut all rows of a batch at
the same number of tokens. What they mean was read in mlx-vlm 0.7.10: the Qwen-VL families, gemma3n
and gemma4."""


def can_join(inputs: Inputs) -> bool:
    """Whether all inputs of a prompt are known here."""
    marked = IMAGE_TOKENS in inputs or BY_IMAGE_TOKEN.isdisjoint(inputs)
    return marked and JOINED.issuperset(inputs)


def columns(rows: Sequence[Row], width: int) -> dict[str, Any]:
    """Return the inputs of several prompts. See `ForwardModel.columns`."""
    import mlx.core as mx

    found: dict[str, Any] = {}
    for key in rows[0].inputs:
        if key in BY_ROW:
            found[key] = mx.concatenate([row.inputs[key] for row in rows], axis=0)
        elif key in BY_TOKEN:
            parts = [_cut(row, key, width) for row in rows]
            found[key] = mx.concatenate(parts, axis=_tokens_axis(parts[0], key) - 1)
        else:
            layers = zip(*(_image_part(row, key) for row in rows), strict=True)
            found[key] = [mx.concatenate(list(layer), axis=0) for layer in layers]
    return found


def _tokens_axis(array: Any, key: str) -> int:
    """Return the axis of the tokens; the rows' is the one before it."""
    # Rotary positions in three parts are of shape (3, rows, tokens).
    return int(array.ndim) - 1 if key == "position_ids" else 1


def _cut(row: Row, key: str, width: int) -> Any:
    """Return some tokens of an input, padded with zeros after its end."""
    import mlx.core as mx

    array = row.inputs[key]
    axis = _tokens_axis(array, key)
    # Before the tokens to read are those of the cached prefix, or none.
    first = array.shape[axis] - row.length
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = slice(first + row.begin, first + row.end)
    part = array[tuple(index)]
    missing = width - part.shape[axis]
    if not missing:
        return part
    return mx.pad(part, [(0, missing if at == axis else 0) for at in range(array.ndim)])


def _image_part(row: Row, key: str) -> list[Any]:
    """Return the entries of the image tokens among some tokens, one array per layer."""
    import numpy as np

    marks = np.asarray(row.inputs[IMAGE_TOKENS]).reshape(-1)
    first = len(marks) - row.length
    start = int(marks[: first + row.begin].sum())
    stop = int(marks[: first + row.end].sum())
    return [layer[start:stop] for layer in row.inputs[key]]
