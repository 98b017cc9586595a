"""Tiny checkpoints of mlx-vlm's further architectures: mixtures of experts."""

from __future__ import annotations

from pathlib import Path

import tools.tiny_models.vision_llava  # noqa: F401 - it registers mistral3
from tools.tiny_models.making import (
    HALF_NORM,
    LLAMA,
    QWEN_TEXT,
    Config,
    chatml,
    finish,
    parts_template,
    siglip_processor,
    tokenizer,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import vary, vision
from tools.tiny_models.vision_more import CHATML_SPECIALS, glm_files


@vision("glm4v_moe")
def glm4v_moe(folder: Path) -> None:
    """Write a tiny checkpoint of glm4v_moe."""
    size, ids = glm_files(folder)
    config: Config = {
        "model_type": "glm4v_moe",
        "vocab_size": size,
        "hidden_size": 64,
        "torch_dtype": "float32",
        "image_token_id": ids["<|image|>"],
        "image_token_index": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "video_token_index": ids["<|video|>"],
        "vision_start_token_id": ids["<|begin_of_image|>"],
        "vision_end_token_id": ids["<|end_of_image|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]],
        "pad_token_id": 0,
        "text_config": {
            **LLAMA,
            "model_type": "glm4v_moe_text",
            "vocab_size": size,
            "head_dim": 16,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "routed_scaling_factor": 1.0,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "use_qk_norm": False,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "num_hidden_layers": 3,
            "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [2, 1, 1]},
        },
        "vision_config": {
            "model_type": "glm4v_moe",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 14,
            "image_size": 112,
            "out_hidden_size": 64,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("llama4")
def llama4(folder: Path) -> None:
    """Write a tiny checkpoint of llama4."""
    specials = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eot|>",
        "<|finetune_right_pad|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|image|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    size, ids = tokenizer(
        folder, specials, bos="<|begin_of_text|>", eos="<|eot|>", pad="<|finetune_right_pad|>"
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}",
            "<|image|>",
            first="{{ bos_token }}",
            last="<|header_start|>assistant<|header_end|>\n\n",
            end="<|eot|>",
        ),
    )
    siglip_processor(folder, 112, "Llama4ImageProcessorFast", max_patches=4)
    config: Config = {
        "model_type": "llama4",
        "image_token_index": ids["<|patch|>"],
        "image_token_id": ids["<|patch|>"],
        "eos_token_id": [ids["<|end_of_text|>"], ids["<|eot|>"]],
        "torch_dtype": "float32",
        "vocab_size": size,
        "text_config": {
            **LLAMA,
            "model_type": "llama4_text",
            "vocab_size": size,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 64,
        },
        "vision_config": {
            "model_type": "llama4_vision_model",
            "hidden_size": 64,
            "image_size": 112,
            "patch_size": 14,
            "initializer_range": 0.02,
            "intermediate_size": 256,
            "norm_eps": 1e-5,
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "pixel_shuffle_ratio": 0.5,
            "projector_dropout": 0.0,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
            "rope_theta": 10000,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("kimi_k25")
def kimi_k25(folder: Path) -> None:
    """Write a tiny checkpoint of kimi_k25."""
    specials = (
        "[BOS]",
        "[EOS]",
        "[PAD]",
        "[UNK]",
        "<|im_end|>",
        "<|im_user|>",
        "<|im_assistant|>",
        "<|im_system|>",
        "<|im_middle|>",
        "<|media_begin|>",
        "<|media_content|>",
        "<|media_end|>",
        "<|media_pad|>",
    )
    size, ids = tokenizer(folder, specials, bos="[BOS]", eos="[EOS]", pad="[PAD]", unk="[UNK]")
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}",
            "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n",
            last="<|im_assistant|>assistant<|im_middle|>",
            end="<|im_end|>",
        ),
    )
    write(
        folder / "preprocessor_config.json",
        {
            "media_proc_cfg": {
                "patch_size": 14,
                "in_patch_limit": 256,
                "merge_kernel_size": 2,
                **HALF_NORM,
            }
        },
    )
    config: Config = {
        "model_type": "kimi_k25",
        "vocab_size": size,
        "media_placeholder_token_id": ids["<|media_pad|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["[EOS]"]],
        "torch_dtype": "float32",
        "text_config": deepseek_v3(size),
        "vision_config": {
            "model_type": "moonvit",
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "patch_size": 14,
            "intermediate_size": 128,
            "init_pos_emb_height": 16,
            "init_pos_emb_width": 16,
            "merge_kernel_size": [2, 2],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


def deepseek_v3(size: int, **more: object) -> Config:
    """
    Make the configuration of a language model as DeepSeek V3, with multi-head latent attention.

    Parameters
    ----------
    size
        Size of the vocabulary.
    **more
        Other entries, and other values of those that are there.

    Returns
    -------
    dict
        The configuration.
    """
    return {
        **LLAMA,
        "model_type": "deepseek_v3",
        "vocab_size": size,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 64,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        **more,
    }


@vision("qwen3_omni_moe")
def qwen3_omni_moe(folder: Path) -> None:
    """Write a tiny checkpoint of qwen3_omni_moe, without the parts that speak."""
    specials = (
        *CHATML_SPECIALS,
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|audio_start|>",
        "<|audio_end|>",
        "<|audio_pad|>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
        extra={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "audio_token": "<|audio_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    write(folder / "chat_template.jinja", chatml("<|vision_start|><|image_pad|><|vision_end|>"))
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "Qwen3OmniMoeProcessor",
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": 4 * 32 * 32,
            "max_pixels": 64 * 32 * 32,
            "feature_size": 128,
            "sampling_rate": 16000,
            "hop_length": 160,
            "chunk_length": 30,
            "n_fft": 400,
            "padding_value": 0.0,
            **HALF_NORM,
        },
    )
    text = {
        **QWEN_TEXT,
        "vocab_size": size,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 2, 2]},
    }
    numbers = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "audio_token_id": ids["<|audio_pad|>"],
        "audio_start_token_id": ids["<|audio_start|>"],
        "audio_end_token_id": ids["<|audio_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    config: Config = {
        "model_type": "qwen3_omni_moe",
        "torch_dtype": "float32",
        "enable_audio_output": False,
        "eos_token_id": ids["<|im_end|>"],
        "im_start_token_id": ids["<|im_start|>"],
        "vocab_size": size,
        "im_end_token_id": ids["<|im_end|>"],
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            **numbers,
            "text_config": text,
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "intermediate_size": 128,
                "out_hidden_size": 64,
                "num_heads": 4,
                "image_size": 128,
                "patch_size": 16,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            "audio_config": {
                "d_model": 64,
                "encoder_layers": 1,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "num_hidden_layers": 1,
                "output_dim": 64,
                "downsample_hidden_size": 16,
            },
        },
        "talker_config": {"text_config": text},
        "code2wav_config": {},
    }
    finish(folder, config)
    vlm_weights(folder, config)


# Mistral Small 4: the attention of DeepSeek's models, and experts.
vary(
    "mistral3",
    "mistral4",
    model_type="mistral4",
    num_hidden_layers=3,
    num_key_value_heads=4,
    head_dim=24,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_rope_head_dim=8,
    qk_nope_head_dim=16,
    qk_head_dim=24,
    v_head_dim=16,
    rope_interleave=True,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    first_k_dense_replace=1,
    rope_parameters={
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 512,
        "llama_4_scaling_beta": 0.1,
    },
)
