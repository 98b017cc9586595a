"""Google's vision models: Gemma 3, Gemma 3n, Gemma 4 and PaliGemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.tiny_models.making import (
    EMBEDDING_GAINS,
    finish,
    gemma_template,
    siglip_processor,
    tokenizer,
    tower,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import four_bit, shrinks, vary, vision

COMMON_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
GEMMA_SPECIALS = (
    *COMMON_SPECIALS,
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
)
GEMMA3N_FIRST = 900  # the number of the first image token, above the trained vocabulary


def _tokenizer(folder: Path, specials: tuple[str, ...], **more: Any) -> tuple[int, dict[str, int]]:
    return tokenizer(
        folder,
        specials,
        style="spm",
        size=900,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        tokenizer_class="GemmaTokenizerFast",
        **more,
    )


@vision("gemma3", most_used=True)
def _gemma3(folder: Path, **text: Any) -> None:
    size, ids = _tokenizer(
        folder,
        (*GEMMA_SPECIALS, "<image_soft_token>"),
        post_bos=True,
        extra={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    write(folder / "chat_template.jinja", gemma_template("<start_of_image>"))
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": 16}
    write(folder / "processor_config.json", processor)
    siglip_processor(folder, 112, "Gemma3ImageProcessor", resample=2)
    config = {
        "model_type": "gemma3",
        "vocab_size": size,
        "image_token_index": ids["<image_soft_token>"],
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "mm_tokens_per_image": 16,
        "pad_token_id": ids["<pad>"],
        "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
        "torch_dtype": "float32",
        "hidden_size": 64,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": size,
            "sliding_window": 32,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 16,
            "mm_tokens_per_image": 16,
            **text,
        },
        "vision_config": tower("siglip_vision_model"),
    }
    finish(folder, config)
    vlm_weights(folder, config, gains=EMBEDDING_GAINS)


vary("gemma3", "mqa", num_key_value_heads=1)
vary("gemma3", "rope linear", rope_scaling={"factor": 8.0, "rope_type": "linear"})
four_bit("gemma3")


@shrinks("gemma3n")
def _shrink_gemma3n() -> None:
    from mlx_vlm.models.gemma3n import vision as encoder

    edge, inverted, attention = encoder._er, encoder._uir, encoder._mmqa

    def stages() -> list[list[Any]]:
        return [
            [edge(3, 128, 2)],
            [inverted(3, 5, 256, 2, 1.0)],
            [
                inverted(5, 5, 640, 2, 1.0),
                attention(4, 16, 2),
                inverted(0, 0, 640, 1, 1.0, is_multiscale=True),
            ],
            [
                inverted(5, 5, 1280, 2, 1.0),
                attention(4, 16, 1),
                inverted(0, 0, 1280, 1, 1.0, is_multiscale=True),
            ],
        ]

    encoder.gemma3n_mobilenet_def = stages


@vision("gemma3n")
def _gemma3n(folder: Path, **text: Any) -> None:
    first = GEMMA3N_FIRST
    image, audio = first + 1, first + 11
    at = {f"<extra_{number}>": number for number in range(first, first + 20)}
    del at[f"<extra_{image}>"], at[f"<extra_{audio}>"]
    at |= {"<image_soft_token>": image, "<audio_soft_token>": audio}
    size, ids = _tokenizer(
        folder,
        (*GEMMA_SPECIALS, "<start_of_audio>", "<end_of_audio>"),
        at=dict(sorted(at.items(), key=lambda item: item[1])),
        extra={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "audio_token": "<audio_soft_token>",
            "boa_token": "<start_of_audio>",
            "eoa_token": "<end_of_audio>",
        },
    )
    if size != first:
        raise ValueError(f"The vocabulary has {size} tokens instead of {first}.")
    write(folder / "chat_template.jinja", gemma_template("{{ '<image_soft_token>' }}"))
    processor = {
        "processor_class": "Gemma3nProcessor",
        "image_seq_length": 256,
        "audio_seq_length": 188,
    }
    write(folder / "processor_config.json", processor)
    siglip_processor(folder, 256, do_normalize=False, resample=2)
    config = {
        "model_type": "gemma3n",
        "vocab_size": first + 20,
        "image_token_id": image,
        "image_token_index": image,
        "audio_token_id": audio,
        "pad_token_id": ids["<pad>"],
        "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
        "torch_dtype": "float32",
        "vision_soft_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3n_text",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "intermediate_size": [128] * 4,
            "num_attention_heads": 4,
            "head_dim": 16,
            "vocab_size": first + 20,
            "vocab_size_per_layer_input": first,
            "num_key_value_heads": 2,
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 16,
            "sliding_window": 32,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "altup_num_inputs": 2,
            **text,
        },
        "vision_config": {
            "model_type": "gemma3n_vision",
            "hidden_size": 2048,
            "vocab_size": 10,
            "vocab_offset": first,
        },
        "audio_config": {
            "hidden_size": 32,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "vocab_size": 10,
            "vocab_offset": first + 10,
            "input_feat_size": 80,
            "sscp_conv_channel_size": [8, 4],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config, gains={"embed_tokens.": 0.5})


@vision("gemma4")
def _gemma4(folder: Path, **text: Any) -> None:
    size, ids = _tokenizer(
        folder,
        (
            *COMMON_SPECIALS,
            "<|turn>",
            "<turn|>",
            "<|image|>",
            "<|image>",
            "<image|>",
            "<|audio|>",
            "<|audio>",
            "<audio|>",
            "<|video|>",
        ),
        extra={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    )
    template = gemma_template("{{ '<|image|>' }}", start="<|turn>", end="<turn|>")
    write(folder / "chat_template.jinja", template)
    processor = {
        "processor_class": "Gemma4Processor",
        "image_processor": {
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": 8,
            "max_soft_tokens": 70,
            "pooling_kernel_size": 3,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": False,
        },
    }
    write(folder / "processor_config.json", processor)
    config = {
        "model_type": "gemma4",
        "vocab_size": size,
        "image_token_id": ids["<|image|>"],
        "audio_token_id": ids["<|audio|>"],
        "boi_token_id": ids["<|image>"],
        "eoi_token_id": ids["<image|>"],
        "video_token_id": ids["<|video|>"],
        "pad_token_id": ids["<pad>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "torch_dtype": "float32",
        "hidden_size": 64,
        "vision_soft_tokens_per_image": 70,
        "audio_config": None,
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size": size,
            "vocab_size_per_layer_input": size,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "sliding_window": 32,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **text,
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "global_head_dim": 16,
            "patch_size": 8,
            "pooling_kernel_size": 3,
            "default_output_length": 70,
            "position_embedding_size": 256,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config, gains={"embed_tokens": 0.3, "embedding_projection": 4.0})


# As gemma-4-E2B, gemma-4-31B and gemma-4-26B-A4B.
vary("gemma4", "mqa", num_key_value_heads=1)
vary(
    "gemma4",
    "k-eq-v",
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=0,
)
vary(
    "gemma4",
    "moe",
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=0,
    enable_moe_block=True,
    num_experts=4,
    top_k_experts=2,
    moe_intermediate_size=64,
)

# As gemma-4-26B-A4B and gemma-4-31B: the tokens of an image see each other.
vary("gemma4", "bidirectional", use_bidirectional_attention="vision")


@vision("paligemma")
def _paligemma(folder: Path, **text: Any) -> None:
    size, ids = _tokenizer(folder, (*COMMON_SPECIALS, "<image>"))
    processor = {
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": 64,
        "image_token": "<image>",
    }
    write(folder / "processor_config.json", processor)
    siglip_processor(folder, 112, image_seq_length=64)
    config = {
        "model_type": "paligemma",
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "hidden_size": 64,
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "torch_dtype": "float32",
        "projection_dim": 64,
        "text_config": {
            "model_type": "gemma",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": size,
            "head_dim": 16,
            **text,
        },
        "vision_config": tower("siglip_vision_model", projection_dim=64),
    }
    finish(folder, config)
    vlm_weights(folder, config, gains=EMBEDDING_GAINS)


# PaliGemma 1 has one key-value head. PaliGemma 2 has the language model of Gemma 2.
vary("paligemma", "mqa", num_key_value_heads=1)
vary(
    "paligemma",
    "gemma2",
    model_type="gemma2",
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    query_pre_attn_scalar=16,
    sliding_window=32,
)
