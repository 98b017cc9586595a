"""Numbers of a configuration: refuses implausibly large ones, and reads the model's context.

A library creates as many layers as config.json says, and resizes images to the size in the
processor's configuration. With an absurd number this takes minutes or all memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

MOST_EDGE = 2**14
"""Maximum side of an image in a processor's configuration, in pixels."""

MOST_PIXELS = 2**28
"""Maximum pixels of an image or video in a processor's configuration; 9e7 for Qwen's videos."""

MOST_PATCHES = 2**20
"""Maximum patches or tokens of an image; 65,536 for Kimi and Qwen."""

_FEW_LAYERS = 256
_LAYERS = re.compile(r"(?:.*_)?(?:layers|depths?|blocks)|n_layer|num_hidden_layer")
_NOT_NEGATIVE = re.compile(
    r"(?:num_)?hidden_layers|n_layers?|num_layers|depth|hidden_size|vocab_size|n_embd|d_model"
    r"|(?:num|n)_(?:attention_|key_value_)?heads?|patch_size|intermediate_size"
)
# Limits are at least 16 times the largest value in known models.
_CAPS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r".*vocab.*_size.*|vocab_size|n_vocab|num_embeddings"), 2**26),
    (re.compile(r"im(?:age|g)_size|force_image_size|tile_size"), 2**16),
    (re.compile(r".*(?:expert|head|group|codebook|kernel|channel|stage)s?.*"), 2**20),
    (re.compile(r".*(?:_size|_dim|_rank|_width)|n_embd|d_model|dim|width|rank|r"), 2**24),
)
_MANY = re.compile(r".*(?:per_|_ids?|_index|token|indices|_chunk|window|batch).*")
_EDGES = ("height", "width", "max_height", "max_width", "shortest_edge", "longest_edge")
_SIZES = re.compile(
    r"(?:max_|min_|crop_|pad_|tile_|im(?:age|g)_|input_|base_image_input_|force_image_)*size"
    r"|scale_resolution"
)
_PIXELS = re.compile(r".*_pixels")
_TILES = re.compile(r"(?:max_|min_|num_)*(?:image_)?(?:tiles|crops|slice_nums|dynamic_patch)")
_TOKENS = re.compile(
    r".*(?:image|img|audio|video|mm).*_(?:seq_len(?:gth)?|tokens(?:_per_image)?)"
    r"|.*(?:num|max|min)_(?:num_)?(?:patches|soft_tokens)|in_patch_limit.*|image_feature_size"
    r"|(?:max_|num_|min_)+frames"
)
# In these processors, edges are pixel counts of the whole image.
_IN_PIXELS = re.compile(r"qwen|glm|paddle|keye|dots|ernie|hunyuan|mimo|kimi|video|omni", re.I)
_PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


def require_dimensions(config: Mapping[str, Any], *, tensors: int, nbytes: int, model: str) -> None:
    """Refuse a configuration that contradicts its weights, or is implausible.

    Parameters
    ----------
    config : mapping
        The parsed config.json, or an adapter's.
    tensors : int
        Number of tensors in the weights.
    nbytes : int
        Bytes of the weights.
    model : str
        Name of the model, for the error.

    Raises
    ------
    CheckpointError
    """
    for prefix, part in _parts(config):
        for key, value in part.items():
            for number in _numbers(value):
                if (why := _implausible(key, number, tensors)) is not None:
                    raise _refused(model, "config.json", f"{prefix}{key}", number, why)
        vocabulary, width = part.get("vocab_size"), _first(part, _WIDTHS)
        if (
            type(vocabulary) is int
            and width is not None
            and vocabulary * width > 8 * nbytes + 2**23
        ):
            raise CheckpointError(
                f"{model}: config.json says {shown(prefix)}vocab_size = {vocabulary} and a width "
                f"of {width}, which would take more than all its weights ({nbytes / 1e6:.1f} MB): "
                "fetch the model again.",
                model=model,
            )


def require_image_sizes(folder: Path, config: Mapping[str, Any], *, model: str) -> None:
    """Refuse a processor that would resize images to an implausible size.

    Parameters
    ----------
    folder : Path
        The checkpoint, whose JSON files must be readable.
    config : mapping
        The parsed config.json.
    model : str
        Name of the model, for the error.

    Raises
    ------
    CheckpointError
    """
    for name in _PROCESSORS:
        path = folder / name
        try:
            content = strict_json.read(path) if path.is_file() else None
        except (UnreadableFileError, OSError) as error:
            raise CheckpointError(
                f"{model}: {name} cannot be read: fetch the model again.", model=model
            ) from error
        for prefix, part in _parts(content):
            _require_image_size(part, prefix, name, config, model)


def _require_image_size(
    part: Mapping[str, Any], prefix: str, file: str, config: Mapping[str, Any], model: str
) -> None:
    kind = part.get("image_processor_type") or part.get("video_processor_type")
    named = kind or f"{part.get('processor_class')} {config.get('model_type')} {prefix}"
    in_pixels = _IN_PIXELS.search(str(named)) is not None
    patch = next((n for n in _numbers(part.get("patch_size")) if n == int(n)), None)
    area = 0.0
    for key, value in part.items():
        most, found = _limit_of(key, value, in_pixels=in_pixels)
        for inner, number in found:
            where = f"{prefix}{key}{inner}"
            if number > most:
                raise _refused(model, file, where, number, f"no model takes more than {most:,}")
            if most == MOST_EDGE:
                area = max(area, number**2)
            elif most == MOST_PIXELS and "video" not in f"{file}{named}".lower():
                area = max(area, number)
    if patch is not None and patch < 1:
        raise _refused(model, file, f"{prefix}patch_size", patch, "a patch has at least one pixel")
    if patch is not None and area / patch**2 > MOST_PATCHES:
        raise _refused(
            model, file, f"{prefix}patch_size", patch,
            f"with {area:,.0f} pixels that makes more than {MOST_PATCHES:,} patches an image",
        )  # fmt: skip


def _limit_of(key: str, value: Any, *, in_pixels: bool) -> tuple[float, list[tuple[str, float]]]:
    """Return the limit of an entry, and its numbers."""
    plain = [("", number) for number in _numbers(value)]
    if _SIZES.fullmatch(key):
        if not isinstance(value, Mapping):
            return MOST_EDGE, plain
        inner = [(f".{k}", n) for k in _EDGES for n in _numbers(value.get(k))]
        pixels = in_pixels and "longest_edge" in value
        return MOST_PIXELS if pixels else MOST_EDGE, inner
    if _PIXELS.fullmatch(key):
        return MOST_PIXELS, plain
    if _TILES.fullmatch(key):
        return 2**12, plain
    if _TOKENS.fullmatch(key):
        return MOST_PATCHES, plain
    if key in _EDGES:
        return MOST_PIXELS if in_pixels else MOST_EDGE, plain
    return 0, []


def _implausible(key: str, number: float, tensors: int) -> str | None:
    """Return why a number of a configuration is implausible, or None."""
    if number < 0:
        return "it cannot be negative" if _NOT_NEGATIVE.fullmatch(key) else None
    if _LAYERS.fullmatch(key):
        most = max(tensors, _FEW_LAYERS)
        return f"the weights have {tensors} tensors" if number > most else None
    if _MANY.fullmatch(key) and "vocab" not in key:
        return None
    for pattern, most in _CAPS:
        if pattern.fullmatch(key):
            return f"no model has more than {most:,}" if number > most else None
    return None


def _parts(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each object of a configuration with its path."""
    if isinstance(value, Mapping):
        yield prefix, value
        if depth < 8:
            for key, part in value.items():
                if isinstance(part, Mapping | list):
                    yield from _parts(part, f"{prefix}{key}.", depth + 1)
    elif isinstance(value, list) and depth < 8:
        for part in value[:1000]:
            if isinstance(part, Mapping):
                yield from _parts(part, prefix, depth + 1)


def _numbers(value: Any) -> list[float]:
    """Return an entry that is a number as a list, or the numbers of a list entry."""
    values = value[:64] if isinstance(value, list) else [value]
    return [n for n in values if isinstance(n, int | float) and not isinstance(n, bool)]


def _first(part: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((part[k] for k in keys if type(part.get(k)) is int), None)


def _refused(model: str, file: str, where: str, number: float, why: str) -> CheckpointError:
    return CheckpointError(
        f"{model}: {file} says {shown(where)} = {number}, but {why}: fetch the model again from a "
        "source that you trust.",
        model=model,
    )


TEXT_PARTS = ("text_config", "llm_config", "language_config", "llm", "language_model")
"""Keys of config.json that hold the configuration of the language model."""

HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads")
"""Keys of config.json for the number of attention heads."""

KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num")
"""Keys of config.json for the number of heads that have keys and values of their own."""

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
