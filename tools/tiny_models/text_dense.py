"""Text models of which each layer has attention and one feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tools.tiny_models.making import (
    DYNAMIC_ROPE,
    LINEAR_ROPE,
    LLAMA,
    LLAMA3_ROPE,
    QWEN_TEXT,
    YARN_ROPE,
    Config,
    long_rope,
    text_model,
)
from tools.tiny_models.spec import four_bit, text, vary

GEMMA: Config = {**LLAMA, "head_dim": 16}
GRANITE: Config = {
    **LLAMA,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.8,
    "attention_bias": False,
    "mlp_bias": False,
}
WINDOW: Config = {
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _dense(
    architecture: str,
    config: Config,
    *,
    gain: float = 2.0,
    gains: Mapping[str, float] | None = None,
    **registered: Any,
) -> None:
    config = {"model_type": architecture, **config}
    build = partial(text_model, config=config, gain=gain, gains=gains)
    text(architecture, **registered)(build)


def _ministral_rope(**kind: Any) -> Config:
    return {
        "rope_theta": 10000.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 64,
        **kind,
    }


# Llama 3 has grouped key-value heads, Llama 2 as many as query heads.
_dense("llama", {**LLAMA, "tie_word_embeddings": False}, most_used=True)
vary("text-llama", "mha", num_key_value_heads=4)
vary("text-llama", "mqa", num_key_value_heads=1)
vary("text-llama", "rope llama3", rope_scaling=LLAMA3_ROPE)
vary("text-llama", "rope linear", rope_scaling=LINEAR_ROPE)
vary("text-llama", "rope dynamic", rope_scaling=DYNAMIC_ROPE, max_position_embeddings=64)
vary("text-llama", "rope yarn", rope_scaling=YARN_ROPE)
four_bit("text-llama")

_dense(
    "llama",
    {**LLAMA, "model_type": "mistral", "head_dim": 32, "tie_word_embeddings": False},
    name="mistral",
    variant="mistral",
)
vary("text-mistral", "window", **WINDOW)

_dense(
    "ministral3",
    {
        **LLAMA,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": _ministral_rope(**YARN_ROPE),
    },
)
vary(
    "text-ministral3",
    "rope default",
    rope_parameters=_ministral_rope(rope_type="default", type="default"),
)
vary("text-ministral3", "window", **WINDOW)

_dense("qwen2", QWEN_TEXT, most_used=True)
vary("text-qwen2", "mha", num_key_value_heads=4)
vary("text-qwen2", "rope yarn", rope_scaling=YARN_ROPE)
four_bit("text-qwen2")

_dense("qwen3", {**QWEN_TEXT, "head_dim": 16})
vary("text-qwen3", "rope yarn", rope_scaling=YARN_ROPE)

# Gemma 2B has one key-value head, Gemma 7B as many as query heads.
_dense("gemma", {**GEMMA, "num_key_value_heads": 1})
vary("text-gemma", "mha", num_key_value_heads=4)

_dense("gemma2", {**GEMMA, "query_pre_attn_scalar": 16})
vary("text-gemma2", "mha", num_key_value_heads=4)

GEMMA3: Config = {
    **GEMMA,
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "sliding_window_pattern": 3,
}
_dense("gemma3_text", GEMMA3, most_used=True)
vary("text-gemma3_text", "mqa", num_key_value_heads=1)
vary("text-gemma3_text", "rope linear", rope_scaling=LINEAR_ROPE)
four_bit("text-gemma3_text")

# The language model of a checkpoint with an image encoder.
_dense(
    "gemma3",
    {"text_config": {**GEMMA3, "model_type": "gemma3_text", "rope_scaling": LINEAR_ROPE}},
)

GEMMA4: Config = {
    **GEMMA,
    "num_hidden_layers": 4,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 700,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_dense("gemma4_text", GEMMA4, gains={"embed_tokens": 0.3, "embedding_projection": 4.0})
vary("text-gemma4_text", "mqa", num_key_value_heads=1)
vary(
    "text-gemma4_text",
    "k-eq-v",
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=0,
)

_dense(
    "gemma3n",
    {
        "text_config": {
            **GEMMA,
            "model_type": "gemma3n_text",
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "vocab_size_per_layer_input": 700,
            "num_kv_shared_layers": 2,
            "sliding_window": 32,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
)

_dense("cohere", {**LLAMA, "num_key_value_heads": 4, "logit_scale": 0.5})
vary("text-cohere", "gqa", num_key_value_heads=2, use_qk_norm=True)

_dense(
    "cohere2",
    {
        **GEMMA,
        "num_hidden_layers": 4,
        "logit_scale": 0.5,
        "sliding_window": 32,
        "sliding_window_pattern": 4,
    },
)

_dense("olmo2", {**LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": False})
vary("text-olmo2", "gqa", num_key_value_heads=2)

OLMO3_LAYERS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
_dense(
    "olmo3",
    {
        **LLAMA,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "sliding_window": 32,
        "layer_types": OLMO3_LAYERS,
    },
)
vary("text-olmo3", "gqa rope yarn", num_key_value_heads=2, rope_scaling=YARN_ROPE)

_dense("granite", GRANITE)

_dense(
    "phi",
    {**LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5},
)

# Phi-3 mini has as many key-value heads as query heads, Phi-3 medium and Phi-4 fewer.
_dense("phi3", LLAMA)
vary("text-phi3", "mha", num_key_value_heads=4)
vary(
    "text-phi3",
    "rope longrope",
    rope_scaling=long_rope(16),
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
)
vary(
    "text-phi3",
    "mha rope su",
    num_key_value_heads=4,
    rope_scaling=long_rope(16, "su"),
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
)
vary(
    "text-phi3",
    "partial rope longrope",
    partial_rotary_factor=0.75,
    rope_scaling=long_rope(12),
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
)

_dense("starcoder2", {**LLAMA, "norm_epsilon": 1e-5})

GPT: Config = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}
_dense("gpt2", {**GPT, "n_ctx": 1024, "layer_norm_epsilon": 1e-5})
_dense("gpt_bigcode", {**GPT, "n_inner": 128, "layer_norm_epsilon": 1e-5})
vary("text-gpt_bigcode", "mha", multi_query=False)
_dense(
    "gpt_neox",
    {**LLAMA, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.25},
)

_dense(
    "stablelm",
    {
        **LLAMA,
        "num_key_value_heads": 4,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "layer_norm_eps": 1e-5,
    },
)
vary(
    "text-stablelm",
    "gqa qk-norm",
    num_key_value_heads=2,
    qk_layernorm=True,
    use_qkv_bias=False,
    use_parallel_residual=True,
)

_dense("glm", {**LLAMA, "head_dim": 16, "attention_bias": True})
_dense("glm4", {**LLAMA, "head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5})

_dense("internlm2", {**LLAMA, "bias": False})
vary("text-internlm2", "rope dynamic", rope_scaling=DYNAMIC_ROPE, max_position_embeddings=128)
_dense(
    "internlm3",
    {
        **LLAMA,
        "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
        "max_position_embeddings": 128,
    },
)

_dense(
    "exaone",
    {**LLAMA, "num_layers": 2, "layer_norm_epsilon": 1e-5},
)
_dense(
    "exaone4",
    {
        **QWEN_TEXT,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "rope_scaling": LLAMA3_ROPE,
        "sliding_window": 32,
        "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
)
# As EXAONE 4.0 1.2B.
vary(
    "text-exaone4",
    "no window",
    sliding_window=None,
    sliding_window_pattern=None,
    layer_types=["full_attention"] * 4,
)

_dense("smollm3", {**LLAMA, "num_hidden_layers": 4, "no_rope_layer_interval": 4})
vary("text-smollm3", "rope yarn", rope_scaling=YARN_ROPE)

HUNYUAN_ROPE = {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}
_dense("hunyuan_v1_dense", {**LLAMA, "rope_scaling": HUNYUAN_ROPE})

_dense(
    "afm7",
    {
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
)

MINICPM: Config = {**LLAMA, "dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 4}
_dense("minicpm", MINICPM)
vary("text-minicpm", "mha", num_key_value_heads=4)
_dense(
    "minicpm3",
    {
        **MINICPM,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "max_position_embeddings": 1024,
        "rope_scaling": long_rope(8),
    },
)

_dense("nemotron", {**LLAMA, "hidden_act": "relu2", "norm_eps": 1e-5})
_dense("ernie4_5", {**LLAMA, "head_dim": 16, "use_bias": False, "tie_word_embeddings": False})
_dense(
    "helium",
    {
        **LLAMA,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
)
_dense("mimo", LLAMA)
_dense("seed_oss", {**LLAMA, "head_dim": 16, "attention_bias": True})
_dense(
    "apertus",
    {
        **QWEN_TEXT,
        "mlp_bias": False,
        "attention_bias": False,
        "post_norm": False,
        "qk_norm": True,
        "rope_scaling": LLAMA3_ROPE,
    },
)
_dense(
    "openelm",
    {
        "head_dim": 16,
        "num_transformer_layers": 2,
        "model_dim": 64,
        "ffn_dim_divisor": 16,
        "num_query_heads": [4, 8],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [1.0, 2.0],
    },
)
_dense(
    "qwen",
    {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "kv_channels": 16,
        "intermediate_size": 256,
        "max_position_embeddings": 8192,
    },
)
