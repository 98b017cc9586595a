"""The model's shape, and the folder that ``mlx_vlm.load`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.smolvlm import Model, ModelConfig, TextConfig, VisionConfig
from tokenizers import Tokenizer

from tools.demo_model.boxes import SCALE
from tools.demo_model.draw import CELLS, PATCHES, SIDE
from tools.demo_model.prompt import IMAGE, IMAGE_TOKENS, START, STOP, TEMPLATE
from tools.demo_model.tokenizer import SPECIAL, VOCABULARY

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "num_channels": 3,
    "image_size": SIDE,
    "patch_size": SIDE // PATCHES,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def token(name: str) -> int:
    """Return the number of a special token."""
    return SPECIAL.index(name)


def config() -> dict[str, Any]:
    """Return the contents of config.json."""
    return {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "vocab_size": VOCABULARY,
        "scale_factor": PATCHES // CELLS,
        "image_token_id": token(IMAGE),
        "bos_token_id": token(START),
        "eos_token_id": [token(STOP), token("<|endoftext|>")],
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        # Its boxes are numbers from 0 to 1000 of the image's width and height.
        "box_scale": SCALE,
        "text_config": TEXT,
        "vision_config": VISION,
    }


def build() -> Any:
    """Return a model with random weights, of the class that mlx-vlm loads."""
    held = config()
    return Model(
        ModelConfig(
            text_config=TextConfig.from_dict(TEXT),
            vision_config=VisionConfig.from_dict(VISION),
            model_type="smolvlm",
            vocab_size=VOCABULARY,
            scale_factor=held["scale_factor"],
            image_token_id=held["image_token_id"],
            eos_token_id=held["eos_token_id"],
        )
    )


def write_folder(folder: Path, tokenizer: Tokenizer) -> None:
    """Write everything but the weights and the model card.

    Parameters
    ----------
    folder
        The model's folder, made where it does not exist.
    tokenizer
        The tokenizer to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    square = {"height": SIDE, "width": SIDE}
    image_processor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": False,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": SIDE},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": square,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": TEXT["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "bos_token": START,
        "eos_token": STOP,
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "additional_special_tokens": [name for name in SPECIAL if name != "<|endoftext|>"],
    }
    generation = {
        "do_sample": False,
        "bos_token_id": token(START),
        "eos_token_id": [token(STOP), token("<|endoftext|>")],
        "pad_token_id": token("<|endoftext|>"),
    }
    files = {
        "config.json": config(),
        "preprocessor_config.json": image_processor,
        "processor_config.json": {
            "processor_class": "SmolVLMProcessor",
            "image_seq_len": IMAGE_TOKENS,
        },
        "tokenizer_config.json": tokens,
        "generation_config.json": generation,
    }
    for name, held in files.items():
        (folder / name).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def save_weights(model: Any, path: Path, dtype: Any = mx.float16) -> None:
    """Write a model's weights in a smaller number format."""
    weights = {name: value.astype(dtype) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
