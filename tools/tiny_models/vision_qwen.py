"""Qwen's vision models, and those that are built like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.tiny_models.making import (
    CLIP_NORM,
    HALF_NORM,
    QWEN_TEXT,
    Config,
    chatml,
    finish,
    parts_template,
    tokenizer,
    tower,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import four_bit, shrinks, vary, vision

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
MROPE: Config = {"type": "mrope", "mrope_section": [2, 3, 3]}
DEFAULT_MROPE: Config = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
QWEN3_MROPE: Config = {"rope_type": "default", "mrope_section": [4, 2, 2]}
LINEAR_ATTENTION: Config = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}
EXPERTS: Config = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}


def _common(folder: Path, model_type: str, patch: int) -> Config:
    size, ids = tokenizer(
        folder,
        QWEN_SPECIALS,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml(QWEN_IMAGE))
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
        **CLIP_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    return {
        "model_type": model_type,
        "vocab_size": size,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }


def _write(folder: Path, config: Config, **more: Any) -> None:
    finish(folder, config)
    vlm_weights(folder, config, **more)


@vision("qwen2_vl", most_used=True)
def _qwen2_vl(folder: Path, **text: Any) -> None:
    config = {**QWEN_TEXT, "rope_scaling": MROPE, **_common(folder, "qwen2_vl", 14), **text}
    config["vision_config"] = {
        "model_type": "qwen2_vl",
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "mlp_ratio": 2,
        "in_channels": 3,
    }
    _write(folder, config)


vary("qwen2_vl", "mha", num_key_value_heads=4)
vary("qwen2_vl", "rope default", rope_scaling=DEFAULT_MROPE)
four_bit("qwen2_vl")


@vision("qwen2_5_vl", most_used=True)
def _qwen2_5_vl(folder: Path, **text: Any) -> None:
    config = {**QWEN_TEXT, "rope_scaling": MROPE, **_common(folder, "qwen2_5_vl", 14), **text}
    config["vision_config"] = {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "in_channels": 3,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    _write(folder, config)


vary("qwen2_5_vl", "mha", num_key_value_heads=4)
vary("qwen2_5_vl", "rope default", rope_scaling=DEFAULT_MROPE)
four_bit("qwen2_5_vl")


def _qwen3_encoder(model_type: str, deepstack: list[int]) -> Config:
    return {
        "model_type": model_type,
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "num_heads": 4,
        "patch_size": 16,
        "in_channels": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": deepstack,
    }


def _qwen3(folder: Path, kind: str, deepstack: list[int], seed: int = 0, **text: Any) -> None:
    config = _common(folder, kind, 16)
    config["text_config"] = {
        **QWEN_TEXT,
        "model_type": f"{kind}_text",
        "vocab_size": config["vocab_size"],
        **text,
    }
    config["vision_config"] = _qwen3_encoder(kind, deepstack)
    _write(folder, config, seed=seed)


@vision("qwen3_vl", most_used=True)
def _qwen3_vl(folder: Path, **text: Any) -> None:
    base = {"head_dim": 16, "num_hidden_layers": 3, "rope_scaling": QWEN3_MROPE}
    _qwen3(folder, "qwen3_vl", [0, 1], 1, **{**base, **text})


vary("qwen3_vl", "mha", num_key_value_heads=4)
vary("qwen3_vl", "rope mrope", rope_scaling={"type": "mrope", "mrope_section": [4, 2, 2]})
four_bit("qwen3_vl")


@vision("qwen3_vl_moe")
def _qwen3_vl_moe(folder: Path, **text: Any) -> None:
    base = {"head_dim": 16, "num_hidden_layers": 3, "rope_scaling": QWEN3_MROPE, **EXPERTS}
    _qwen3(folder, "qwen3_vl_moe", [0, 1], **{**base, **text})


@vision("qwen3_5")
def _qwen3_5(folder: Path, **text: Any) -> None:
    _qwen3(folder, "qwen3_5", [], **{**LINEAR_ATTENTION, **text})


vary("qwen3_5", "mqa", num_key_value_heads=1)


@vision("qwen3_5_moe")
def _qwen3_5_moe(folder: Path, **text: Any) -> None:
    experts = {**EXPERTS, "shared_expert_intermediate_size": 64}
    _qwen3(folder, "qwen3_5_moe", [], **{**LINEAR_ATTENTION, **experts, **text})


@vision("fastvlm")
def _fastvlm(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        QWEN_SPECIALS[:3],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>\n"))
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 256, "width": 256},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        **QWEN_TEXT,
        "model_type": "llava_qwen2",
        "vocab_size": size,
        "image_token_index": -200,
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 128,
        "mm_vision_tower": "mobileclip_l_256",
        "tokenizer_model_max_length": 8192,
        **text,
    }
    finish(folder, config)
    vlm_weights(folder, {**config, "vision_config": {}})


@vision("internvl_chat")
def _internvl_chat(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (*QWEN_SPECIALS[:3], "<img>", "</img>", "<IMG_CONTEXT>", "<image>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>\n"))
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "size": 112}
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        "model_type": "internvl_chat",
        "vocab_size": size,
        "image_token_index": ids["<IMG_CONTEXT>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "torch_dtype": "float32",
        "force_image_size": 112,
        "downsample_ratio": 0.5,
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "use_thumbnail": True,
        "vision_feature_layer": -1,
        "text_config": {**QWEN_TEXT, "model_type": "qwen2", "vocab_size": size, **text},
        "vision_config": tower("intern_vit_6b"),
    }
    _write(folder, config)


vary("internvl_chat", "mha", num_key_value_heads=4)


@vision("minicpmo")
def _minicpmo(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            *QWEN_SPECIALS[:3],
            "<image>",
            "</image>",
            "<slice>",
            "</slice>",
            "<unk>",
            "<|audio_start|>",
            "<|audio_end|>",
            "<|spk_bos|>",
            "<|spk_eos|>",
            "<|tts_bos|>",
            "<|tts_eos|>",
            "<|listen|>",
        ),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        unk="<unk>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>"))
    preprocessor = {
        "image_processor_type": "MiniCPMOImageProcessor",
        "patch_size": 14,
        "scale_resolution": 112,
        "image_feature_size": 16,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        "model_type": "minicpmo",
        "vocab_size": size,
        "eos_token_id": [ids["<|im_end|>"]],
        "torch_dtype": "float32",
        "query_num": 16,
        "image_size": 112,
        "patch_size": 14,
        "init_audio": False,
        "init_tts": False,
        "text_config": {
            **QWEN_TEXT,
            "model_type": "qwen3",
            "vocab_size": size,
            # The resampler has one head for each 128 numbers.
            "hidden_size": 128,
            "head_dim": 16,
            "rope_scaling": {"type": "default", "mrope_section": [4, 2, 2]},
            **text,
        },
        "vision_config": tower("siglip_vision_model"),
    }
    _write(folder, config)


@vision("glm4v")
def _glm4v(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
            "<|image|>",
            "<|video|>",
            "<|begin_of_box|>",
            "<|end_of_box|>",
        ),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
    )
    template = parts_template(
        "{{ '<|' + message['role'] + '|>\n' }}",
        "<|begin_of_image|><|image|><|end_of_image|>",
        first="[gMASK]<sop>",
        last="{{ '<|assistant|>\n' }}",
    )
    write(folder / "chat_template.jinja", template)
    preprocessor = {
        "image_processor_type": "Glm4vImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 64 * 28 * 28},
        **CLIP_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        "model_type": "glm4v",
        "vocab_size": size,
        "image_token_id": ids["<|image|>"],
        "image_token_index": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "video_token_index": ids["<|video|>"],
        "vision_start_token_id": ids["<|begin_of_image|>"],
        "vision_end_token_id": ids["<|end_of_image|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]],
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "glm4v_text",
            "vocab_size": size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rope_theta": 10000.0,
            "eos_token_id": [0],
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            **text,
        },
        "vision_config": {
            "model_type": "glm4v",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 14,
            "image_size": 112,
            "out_hidden_size": 64,
        },
    }
    _write(folder, config)


@vision("paddleocr_vl")
def _paddleocr_vl(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<unk>",
            "<s>",
            "</s>",
            "<|begin_of_sentence|>",
            "<|end_of_sentence|>",
            "<|IMAGE_START|>",
            "<|IMAGE_END|>",
            "<|IMAGE_PLACEHOLDER|>",
            "<|VIDEO|>",
        ),
        bos="<|begin_of_sentence|>",
        eos="</s>",
        pad="<unk>",
        unk="<unk>",
    )
    template = parts_template(
        "{{ message['role'].capitalize() + ': ' }}",
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        first="{{ bos_token }}",
        end="\n",
        last="Assistant: ",
    )
    write(folder / "chat_template.jinja", template)
    preprocessor = {
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
        **HALF_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        **QWEN_TEXT,
        "model_type": "paddleocr_vl",
        "vocab_size": size,
        # The projector's output is hard-coded.
        "hidden_size": 1024,
        "head_dim": 16,
        "use_bias": False,
        "hidden_act": "silu",
        "pad_token_id": 0,
        "bos_token_id": ids["<|begin_of_sentence|>"],
        "eos_token_id": ids["</s>"],
        "image_token_id": ids["<|IMAGE_PLACEHOLDER|>"],
        "video_token_id": ids["<|VIDEO|>"],
        "vision_start_token_id": ids["<|IMAGE_START|>"],
        "vision_end_token_id": ids["<|IMAGE_END|>"],
        "torch_dtype": "float32",
        "rope_scaling": DEFAULT_MROPE,
        "vision_config": tower("paddleocr_vl"),
        **text,
    }
    _write(folder, config)


@shrinks("fastvlm")
def _shrink_fastvlm() -> None:
    from mlx_vlm.models.fastvlm.config import VisionConfig

    VisionConfig.layers = [1, 1, 1, 1, 1]
    VisionConfig.embed_dims = [16, 32, 32, 64, 64]
