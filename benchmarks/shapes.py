"""Dimensions of published models, and folders with random weights of these dimensions."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.model_files import extend, read_json, update_json, write_json

Config = dict[str, Any]

SHARD_BYTES = 2**30
HALF, SINGLE = "bfloat16", "float32"


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a published model.

    Attributes
    ----------
    base : str
        The tiny model of the same family: its tokenizer, chat template and processor are used.
    top, text, vision : dict
        Entries of config.json, of its ``text_config`` and of its ``vision_config``. `text` is
        written to the top if the family has no ``text_config``.
    images, processor : dict
        Entries of preprocessor_config.json and of processor_config.json.
    space : str
        How the tokenizer's vocabulary writes the space before a word.
    tied : frozenset of str
        Weights that are in no checkpoint, because the library copies them from other weights.
    """

    base: str
    text: Config
    vision: Config
    top: Config = field(default_factory=dict)
    images: Config = field(default_factory=dict)
    processor: Config = field(default_factory=dict)
    space: str = "Ġ"
    tied: frozenset[str] = frozenset()


# config.json and preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct on the Hub.
QWEN2_5_VL_3B = Shape(
    "qwen2_5_vl",
    text={
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "vocab_size": 151_936,
    },
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    images={"min_pixels": 3136, "max_pixels": 12_845_056},
)

# config.json and preprocessor_config.json of google/gemma-3-4b-it on the Hub. Its text_config names
# sizes, layers, window and rope_scaling; the others are the defaults of transformers'
# Gemma3TextConfig, which it leaves out.
GEMMA3_4B = Shape(
    "gemma3",
    top={"hidden_size": 2560, "mm_tokens_per_image": 256},
    text={
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_global_base_freq": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "mm_tokens_per_image": 256,
        "vocab_size": 262_208,
    },
    vision={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
    images={"size": {"height": 896, "width": 896}},
    processor={"image_seq_length": 256},
    space="▁",
    tied=frozenset({"language_model.lm_head.weight"}),
)

PUBLISHED = {"qwen2_5_vl-3b": QWEN2_5_VL_3B, "gemma3-4b": GEMMA3_4B}


def build(
    shape: Shape,
    folder: Path,
    *,
    never: tuple[int, str],
    dtype: str | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model folder of a shape, one shard of weights after the other.

    Parameters
    ----------
    shape : Shape
    folder : Path
        Output folder, created if needed.
    never : (int, str)
        Number and word of the end token, which the model must not be able to write.
    dtype : str or None
        Of the weights; None is bfloat16 on a GPU, and float32 on a CPU, where bfloat16 is slow.
    seed : int
        Seed of the weights.
    shard_bytes : int
        Maximum size of a file of weights. A single larger weight has a file of its own.

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _copy_base(shape, folder)
    end, word = never
    config.update(eos_token_id=[end], torch_dtype=dtype or _dtype())
    size = int(shape.text["vocab_size"])
    text_top = "text_config" not in config
    config.update({**shape.top, **(shape.text if text_top else {}), "vocab_size": size})
    if not text_top:
        config["text_config"] |= shape.text
    config["vision_config"] |= shape.vision
    _adapt_files(shape, folder, word)
    write_json(folder / "config.json", config)
    pad = int(config.get("pad_token_id", 0))
    generation = {"do_sample": False, "eos_token_id": [end], "pad_token_id": pad}
    write_json(folder / "generation_config.json", generation)
    _write_weights(shape, config, folder, seed, shard_bytes)
    return folder


def _dtype() -> str:
    import mlx.core as mx

    return SINGLE if mx.default_device() == mx.cpu else HALF


def _copy_base(shape: Shape, folder: Path) -> Config:
    """Copy all files of the tiny model except its weights; returns its configuration."""
    from tools.tiny_models import spec

    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / shape.base
        spec.build(spec.find(shape.base), base)
        ignored = shutil.ignore_patterns("*.safetensors*")
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=ignored)
    return read_json(folder / "config.json")


def _adapt_files(shape: Shape, folder: Path, word: str) -> None:
    """Change the tokenizer's and the processor's files to the shape."""
    update_json(folder / "preprocessor_config.json", **shape.images)
    if shape.processor:
        update_json(folder / "processor_config.json", **shape.processor)
    longest = shape.text["max_position_embeddings"]
    update_json(folder / "tokenizer_config.json", model_max_length=longest, eos_token=word)
    tokenizer = read_json(folder / "tokenizer.json")
    extend(tokenizer["model"]["vocab"], int(shape.text["vocab_size"]), space=shape.space)
    write_json(folder / "tokenizer.json", tokenizer)


def _write_weights(shape: Shape, config: Config, folder: Path, seed: int, shard_bytes: int) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from tools.tiny_models.making import vlm_model

    dtype = getattr(mx, config["torch_dtype"])
    # Lazy: the large ones are only asked for their shapes, and never computed.
    parameters = dict(tree_flatten(vlm_model(config).parameters()))
    parameters = {name: held for name, held in parameters.items() if name not in shape.tied}
    sizes = {name: held.size * dtype.size for name, held in parameters.items()}
    shards = list(_shards(sizes, shard_bytes))
    keys = dict(zip(parameters, mx.random.split(mx.random.key(seed), len(parameters)), strict=True))
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {name: _random(name, parameters.pop(name), keys[name], dtype) for name in names}
        mx.save_safetensors(str(folder / file), weights, metadata={"format": "mlx"})
        files.update(dict.fromkeys(names, file))
        del weights
        mx.clear_cache()
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
    write_json(folder / "model.safetensors.index.json", index)


def _shards(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield groups of names, in their order, whose sizes together are at most `most`."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _random(name: str, like: Any, key: Any, dtype: Any) -> Any:
    """Return random numbers for matrices, and norms and biases as they were initialized."""
    import mlx.core as mx

    if like.ndim < 2:
        return like.astype(dtype)
    # About as large as in the tiny models, so that each part of the model changes the answers.
    # With a larger embedding, the last word decides the next if output and input share it.
    gain = 0.5 if "embed_tokens" in name else 1.0
    scale = gain / math.sqrt(like.size // like.shape[0])
    return mx.random.normal(like.shape, dtype=dtype, scale=scale, key=key)
