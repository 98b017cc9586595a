"""Models that put a CLIP, SigLIP or Pixtral encoder before Llama or Mistral."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.tiny_models.making import (
    CLIP_NORM,
    LLAMA,
    LLAMA_SPECIALS,
    QWEN_TEXT,
    Config,
    chatml,
    clip_processor,
    finish,
    llava_template,
    siglip_processor,
    tokenizer,
    tower,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import four_bit, vary, vision

PIXTRAL_SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
    "<pad>",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)


def _llava_like(
    folder: Path,
    model_type: str,
    /,
    *,
    encoder: str = "clip_vision_model",
    select: str = "default",
    layer: int = -2,
    **text: Any,
) -> Config:
    size, ids = tokenizer(
        folder,
        LLAMA_SPECIALS,
        style="spm",
        size=900,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        post_bos=True,
        tokenizer_class="LlamaTokenizerFast",
    )
    write(folder / "chat_template.jinja", llava_template())
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": select,
        "image_token": "<image>",
        "num_additional_image_tokens": int(encoder.startswith("clip")),
    }
    write(folder / "processor_config.json", processor)
    return {
        "model_type": model_type,
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "eos_token_id": ids["</s>"],
        "pad_token_id": ids["<pad>"],
        "torch_dtype": "float32",
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": select,
        "text_config": {**LLAMA, "model_type": "llama", "vocab_size": size, **text},
        "vision_config": tower(encoder, num_hidden_layers=3, projection_dim=64, num_channels=3),
    }


@vision("llava", most_used=True)
def _llava(folder: Path, **text: Any) -> None:
    config = _llava_like(folder, "llava", **text)
    clip_processor(folder, 112)
    finish(folder, config)
    vlm_weights(folder, config)


# As llava-1.5-7b. The first has the key-value heads of a Llama 3 or Mistral.
vary("llava", "mha", num_key_value_heads=4)
four_bit("llava")


@vision("llava", name="llava_siglip", variant="siglip")
def _llava_siglip(folder: Path, **text: Any) -> None:
    encoder = "siglip_vision_model"
    config = _llava_like(folder, "llava", encoder=encoder, select="full", layer=-1, **text)
    siglip_processor(folder, 112)
    finish(folder, config)
    vlm_weights(folder, config)


@vision("llava_next")
def _llava_next(folder: Path, **text: Any) -> None:
    config = _llava_like(folder, "llava_next", **text)
    grid = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    clip_processor(folder, 112, "LlavaNextImageProcessor", do_pad=True, image_grid_pinpoints=grid)
    finish(folder, config)
    vlm_weights(folder, config)


# As llava-v1.6-vicuna.
vary("llava_next", "mha", num_key_value_heads=4)


@vision("llava_bunny")
def _llava_bunny(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>\n"))
    siglip_processor(folder, 384)
    config = {
        **QWEN_TEXT,
        "model_type": "llava-qwen2",
        "auto_map": {},
        "vocab_size": size,
        "image_token_index": -200,
        "mm_hidden_size": 64,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "torch_dtype": "float32",
        "vision_config": tower("siglip_vision_model", image_size=384),  # the processor's size
        **text,
    }
    finish(folder, config)
    # With little attention to each of them, the 729 patches would drown the words.
    vlm_weights(folder, config, gains={"self_attn.q_proj": 6.0, "self_attn.k_proj": 6.0})


# As Bunny and nanoLLaVA, which have Qwen1.5's language model.
vary("llava_bunny", "mha", num_key_value_heads=4)


def _pixtral_template() -> str:
    return (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' }}"
        "{% elif message['role'] == 'user' %}{{ '[INST]' }}{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '[IMG]' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'system' %}{{ '[/SYSTEM_PROMPT]' }}"
        "{% elif message['role'] == 'user' %}{{ '[/INST]' }}"
        "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    )


def _pixtral_like(folder: Path, model_type: str, merge: int, /, **text: Any) -> Config:
    size, ids = tokenizer(folder, PIXTRAL_SPECIALS, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")
    write(folder / "chat_template.jinja", _pixtral_template())
    processor = {
        "processor_class": "PixtralProcessor",
        "patch_size": 14,
        "spatial_merge_size": merge,
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    write(folder / "processor_config.json", processor)
    preprocessor = {
        "image_processor_type": "PixtralImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "patch_size": {"height": 14, "width": 14},
        "size": {"longest_edge": 224},
        **CLIP_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    text = {**LLAMA, "model_type": "mistral", "vocab_size": size, "head_dim": 16, **text}
    return {
        "model_type": model_type,
        "vocab_size": size,
        "image_token_index": ids["[IMG]"],
        "eos_token_id": ids["</s>"],
        "torch_dtype": "float32",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": text,
        "vision_config": tower(
            "pixtral", image_size=224, head_dim=16, rope_theta=10000.0, num_channels=3
        ),
    }


@vision("pixtral", most_used=True)
def _pixtral(folder: Path, **text: Any) -> None:
    config = _pixtral_like(folder, "pixtral", 1, **text)
    finish(folder, config)
    vlm_weights(folder, config)


four_bit("pixtral")


@vision("mistral3")
def _mistral3(folder: Path, **text: Any) -> None:
    config = {**_pixtral_like(folder, "mistral3", 2, **text), "spatial_merge_size": 2}
    finish(folder, config)
    vlm_weights(folder, config)


# Ministral 3 scales attention by position, from the original number of positions on.
MINISTRAL_ROPE: Config = {
    "rope_type": "yarn",
    "type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 64,
}
vary("mistral3", "ministral3", model_type="ministral3", rope_parameters=MINISTRAL_ROPE)
vary(
    "mistral3",
    "ministral3 rope default",
    model_type="ministral3",
    rope_parameters={
        "rope_type": "default",
        "type": "default",
        "rope_theta": 10000.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 64,
    },
)
vary(
    "mistral3",
    "ministral3 window",
    model_type="ministral3",
    rope_parameters=MINISTRAL_ROPE,
    sliding_window=32,
    layer_types=["sliding_attention", "full_attention"],
)
