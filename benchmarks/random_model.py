"""Model folders with random weights: the cost of a real architecture without a download."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import string
from pathlib import Path
from typing import Any

# A token that no model here can write, so that answers have the maximum length. mlx-vlm also stops
# at the tokenizer's own end token, so its name is set, too.
NEVER = 10_000_000
NEVER_WORD = "<never>"

FILES = (
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

# The shape of SmolVLM-2.2B. 378 pixels are the 27 patches of 14 that its 384 come to.
SIDE_2B, IMAGE_TOKENS_2B = 378, 81
TEXT_2B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 64,
    "rope_theta": 130000.0,
    "max_position_embeddings": 65536,
    "vocab_size": 49280,
}
VISION_2B = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": SIDE_2B,
    "patch_size": 14,
}


# Rows and columns of an image's tiles, as in SmolVLM-2.2B; one more tile is the whole image.
TILES = 4


def build(shape: str, base: Path, folder: Path, *, quantize: bool = False, seed: int = 0) -> Path:
    """Write a model folder that ``mlx_vlm.load`` reads.

    Parameters
    ----------
    shape : {"tiny", "2b", "endless"}
        The bundled architecture, SmolVLM-2.2B's, or the base's own weights; none of them ends
        an answer itself.
    base : Path
        Folder of the bundled model, or one like it: tokenizer, processor and shape.
    folder : Path
        Output folder, created if needed.
    quantize : bool
        Whether to quantize the language model to 4 bits.
    seed : int
        Seed of the weights.

    Returns
    -------
    Path
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(base / name, folder / name)
    config = {**_read_json(base / "config.json"), "eos_token_id": [NEVER]}
    options = _read_json(folder / "tokenizer_config.json")
    _write_json(folder / "tokenizer_config.json", {**options, "eos_token": NEVER_WORD})
    if shape == "endless":
        shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    else:
        if shape == "2b":
            _enlarge(config, folder)
        _write_weights(config, folder, quantize=quantize, seed=seed)
    _write_json(folder / "config.json", config)
    generation = {"do_sample": False, "eos_token_id": [NEVER], "pad_token_id": 0}
    _write_json(folder / "generation_config.json", generation)
    return folder


def twin(source: Path, folder: Path, *, tiles: bool, float32: bool) -> Path:
    """Write a variant of a model folder, for tiled images or for a CPU.

    Parameters
    ----------
    source, folder : Path
        A folder written by `build`, and the output folder.
    tiles : bool
        Whether images are cut into tiles: a square one then has 17 times as many tokens.
    float32 : bool
        Whether to write float32 weights, as the CPU backend is slow with half precision.
        Otherwise the weights are linked.

    Returns
    -------
    Path
        `folder`.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = "model.safetensors"
    if float32:
        _widen(source / weights, folder / weights)
        config = _read_json(folder / "config.json")
        _write_json(folder / "config.json", {**config, "torch_dtype": "float32"})
    else:
        (folder / weights).symlink_to((source / weights).resolve())
    if tiles:
        images = _read_json(folder / "preprocessor_config.json")
        side = images["max_image_size"]["longest_edge"]
        images.update(do_image_splitting=True, size={"longest_edge": TILES * side})
        _write_json(folder / "preprocessor_config.json", images)
    return folder


def _widen(source: Path, target: Path) -> None:
    import mlx.core as mx

    found: Any = mx.load(str(source))
    weights = {
        name: held.astype(mx.float32) if mx.issubdtype(held.dtype, mx.floating) else held
        for name, held in found.items()
    }
    mx.save_safetensors(str(target), weights, metadata={"format": "mlx"})


def _enlarge(config: dict[str, Any], folder: Path) -> None:
    """Change the config and processor files to the shape of the 2 B model."""
    config["text_config"] = {**config["text_config"], **TEXT_2B}
    config["vision_config"] = {**config["vision_config"], **VISION_2B}
    config.update(vocab_size=TEXT_2B["vocab_size"], scale_factor=3, torch_dtype="bfloat16")
    images = _read_json(folder / "preprocessor_config.json")
    images["size"] = {"height": SIDE_2B, "width": SIDE_2B}
    images["max_image_size"] = {"longest_edge": SIDE_2B}
    _write_json(folder / "preprocessor_config.json", images)
    processor = _read_json(folder / "processor_config.json")
    _write_json(folder / "processor_config.json", {**processor, "image_seq_len": IMAGE_TOKENS_2B})
    options = _read_json(folder / "tokenizer_config.json")
    options["model_max_length"] = TEXT_2B["max_position_embeddings"]
    _write_json(folder / "tokenizer_config.json", options)
    tokenizer = _read_json(folder / "tokenizer.json")
    extend(tokenizer["model"]["vocab"], int(config["vocab_size"]))
    _write_json(folder / "tokenizer.json", tokenizer)


def extend(vocabulary: dict[str, int], size: int) -> None:
    """Add made-up words until all numbers below `size` have one, as detokenizers need them."""
    missing = sorted(set(range(size)) - set(vocabulary.values()))
    words = (
        "Ġ" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4)
    )
    unknown = (word for word in words if word not in vocabulary)
    vocabulary.update(zip(unknown, missing, strict=False))


def _write_weights(config: dict[str, Any], folder: Path, *, quantize: bool, seed: int) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_vlm.models.smolvlm import Model, ModelConfig, TextConfig, VisionConfig

    mx.random.seed(seed)
    own = {key: config[key] for key in ("model_type", "vocab_size", "scale_factor", "eos_token_id")}
    model = Model(
        ModelConfig(
            text_config=TextConfig.from_dict(config["text_config"]),
            vision_config=VisionConfig.from_dict(config["vision_config"]),
            image_token_id=config["image_token_id"],
            **own,
        )
    )
    model.set_dtype(getattr(mx, config["torch_dtype"]))
    if quantize:
        nn.quantize(model.language_model, group_size=64, bits=4)
        config["quantization"] = {"group_size": 64, "bits": 4}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def _read_json(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _write_json(path: Path, held: dict[str, Any]) -> None:
    path.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Build a folder from the command line."""
    from mlx_magic.backends.device import platform
    from mlx_magic.demo import folder as bundled

    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_model")
    parser.add_argument("shape", choices=("tiny", "2b", "endless"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, default=bundled())
    parser.add_argument("--quantize", action="store_true")
    given = parser.parse_args()
    platform.prepare()
    print(build(given.shape, given.base, given.folder, quantize=given.quantize))


if __name__ == "__main__":
    main()
