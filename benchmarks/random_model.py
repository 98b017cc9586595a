"""Model folders with random weights: the cost of a real architecture without a download."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.model_files import extend, read_json, update_json, weight_files, write_json
from tools.tiny_models import spec

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

OWN = ("tiny", "2b", "endless")

# Rows and columns of an image's tiles, as in SmolVLM-2.2B; one more tile is the whole image.
TILES = 4
LEAST_IMAGE_TOKENS = 1000


def names() -> list[str]:
    """Return all names that `build` knows, the most used ones first."""
    return [*OWN, *shapes.PUBLISHED, *(model.name for model in spec.all_models() if _runs(model))]


def _runs(model: spec.TinyModel) -> bool:
    """Tell whether each process of a benchmark can load a tiny model, and ask it about images."""
    return model.library == "mlx-vlm" and not spec.is_shrunk(model.architecture)


def build(shape: str, base: Path, folder: Path, *, quantize: bool = False, seed: int = 0) -> Path:
    """Write a model folder that ``mlx_vlm.load`` reads.

    Parameters
    ----------
    shape : str
        ``tiny``, ``2b`` and ``endless`` are the bundled architecture, SmolVLM-2.2B's, and the
        base's own weights. ``qwen2_5_vl-3b`` and ``gemma3-4b`` are the published dimensions. None
        of them ends an answer itself. Other names are those of `tools.tiny_models`, which are
        built as they are.
    base : Path
        For the first three, the folder of the bundled model, or of one like it: tokenizer,
        processor and shape.
    folder : Path
        Output folder, created if needed.
    quantize : bool
        Whether to quantize the language model of ``tiny`` or ``2b`` to 4 bits.
    seed : int
        Seed of the weights. The tiny models have their own.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        There is no such shape, or it cannot be quantized.
    """
    if quantize and shape not in ("tiny", "2b"):
        raise ValueError(f"{shape} cannot be quantized here: use tiny, 2b or a name with -4bit.")
    if shape in OWN:
        return _build_own(shape, base, folder, quantize=quantize, seed=seed)
    if shape in shapes.PUBLISHED:
        never = (NEVER, NEVER_WORD)
        return shapes.build(shapes.PUBLISHED[shape], folder, never=never, seed=seed)
    if shape not in names():
        raise ValueError(f"There is no shape {shape!r}: use one of {', '.join(names())}.")
    spec.build(spec.find(shape), folder)
    return folder


def _build_own(shape: str, base: Path, folder: Path, *, quantize: bool, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(base / name, folder / name)
    config = {**read_json(base / "config.json"), "eos_token_id": [NEVER]}
    update_json(folder / "tokenizer_config.json", eos_token=NEVER_WORD)
    if shape == "endless":
        shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    else:
        if shape == "2b":
            _enlarge(config, folder)
        _write_weights(config, folder, quantize=quantize, seed=seed)
    write_json(folder / "config.json", config)
    generation = {"do_sample": False, "eos_token_id": [NEVER], "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    return folder


def twin(source: Path, folder: Path, *, tiles: bool, float32: bool) -> Path:
    """Write a variant of a model folder, for images of many tokens or for a CPU.

    Parameters
    ----------
    source, folder : Path
        A folder written by `build`, and the output folder.
    tiles : bool
        Whether a square image has `LEAST_IMAGE_TOKENS` or more: cut into tiles, or enlarged.
    float32 : bool
        Whether to write float32 weights, as the CPU backend is slow with half precision.
        Otherwise, and if they are float32 already, the weights are linked.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        With `tiles`, if the number of tokens of an image is fixed.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = read_json(folder / "config.json")
    widened = float32 and config.get("torch_dtype") != "float32"
    for weights in weight_files(source):
        if widened:
            _widen(weights, folder / weights.name)
        else:
            (folder / weights.name).symlink_to(weights.resolve())
    if widened:
        write_json(folder / "config.json", {**config, "torch_dtype": "float32"})
    if tiles:
        _enlarge_images(folder)
    return folder


def _enlarge_images(folder: Path) -> None:
    """Change the processor's file, so that a square image has many tokens."""
    path = folder / "preprocessor_config.json"
    images = read_json(path) if path.exists() else {}
    if "max_image_size" in images:
        side = images["max_image_size"]["longest_edge"]
        update_json(path, do_image_splitting=True, size={"longest_edge": TILES * side})
    elif {"patch_size", "merge_size", "max_pixels"} <= images.keys():
        # Smaller images are enlarged to the minimum.
        least = LEAST_IMAGE_TOKENS * (images["patch_size"] * images["merge_size"]) ** 2
        update_json(path, min_pixels=least, max_pixels=max(least * 4, images["max_pixels"]))
    else:
        raise ValueError(f"{folder.name}: the number of tokens of an image is fixed.")


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
    update_json(
        folder / "preprocessor_config.json",
        size={"height": SIDE_2B, "width": SIDE_2B},
        max_image_size={"longest_edge": SIDE_2B},
    )
    update_json(folder / "processor_config.json", image_seq_len=IMAGE_TOKENS_2B)
    longest = TEXT_2B["max_position_embeddings"]
    update_json(folder / "tokenizer_config.json", model_max_length=longest)
    tokenizer = read_json(folder / "tokenizer.json")
    extend(tokenizer["model"]["vocab"], int(config["vocab_size"]))
    write_json(folder / "tokenizer.json", tokenizer)


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


def main() -> None:
    """Build a folder from the command line."""
    from mlx_magic.backends.device import platform
    from mlx_magic.demo import folder as bundled

    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_model")
    parser.add_argument("shape", metavar="SHAPE", help=f"one of {', '.join(names())}")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--base", type=Path, default=bundled())
    parser.add_argument("--quantize", action="store_true")
    given = parser.parse_args()
    platform.prepare()
    try:
        print(build(given.shape, given.base, given.folder, quantize=given.quantize))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
