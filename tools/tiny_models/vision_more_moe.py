"""Tiny checkpoints of mlx-vlm's further architectures: mixtures of experts."""

from __future__ import annotations

from pathlib import Path

from tools.tiny_models.making import (
    HALF_NORM,
    LLAMA,
    Config,
    finish,
    parts_template,
    siglip_processor,
    tokenizer,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import vision
from tools.tiny_models.vision_more import glm_files


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


@vision("moondream3")
def moondream3(folder: Path) -> None:
    """Write a tiny checkpoint of moondream3."""
    specials = (
        "<|endoftext|>",
        "<|md_reserved_0|>",
        "<|md_reserved_1|>",
        "<|md_reserved_2|>",
        "<|md_reserved_3|>",
    )
    size, _ = tokenizer(folder, specials, bos="<|endoftext|>", eos="<|endoftext|>")
    # The code counts on 27 x 27 tokens of an image.
    config: Config = {
        "model_type": "moondream3",
        "eos_token_id": 0,
        "bos_token_id": 0,
        "torch_dtype": "float32",
        "vocab_size": size,
        "text_config": {
            "model_type": "moondream3",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "vocab_size": size,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "rope_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "moe_start_layer": 1,
        },
        "vision_config": {
            "model_type": "moondream3_vision",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_crops": 3,
            "proj_inner_dim": 128,
            "proj_out_dim": 64,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)
