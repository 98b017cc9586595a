"""Text models with a mixture of experts, and DeepSeek's with latent attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.tiny_models.making import (
    DEEPSEEK_YARN_ROPE,
    LATENT,
    LATENT_V3,
    LLAMA,
    QWEN_TEXT,
    Config,
    long_rope,
    text_model,
)
from tools.tiny_models.spec import text, vary
from tools.tiny_models.text_dense import GRANITE

EXPERTS: Config = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}


def _mixture(architecture: str, config: Config, **registered: Any) -> None:
    config = {"model_type": architecture, **config}
    text(architecture, **registered)(partial(text_model, config=config))


_mixture("mixtral", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2})

_mixture(
    "qwen2_moe",
    {**QWEN_TEXT, **EXPERTS, "num_key_value_heads": 4, "shared_expert_intermediate_size": 64},
)
vary("text-qwen2_moe", "gqa", num_key_value_heads=2)

_mixture(
    "qwen3_moe",
    {**QWEN_TEXT, **EXPERTS, "head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []},
)

GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
_mixture(
    "gpt_oss",
    {
        **LLAMA,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "head_dim": 16,
        "sliding_window": 32,
        "rope_scaling": GPT_OSS_ROPE,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)

_mixture(
    "deepseek",
    {
        **LLAMA,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 64,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
)
# DeepSeek V2 Lite has no low-rank queries. Without yarn, mlx-lm does not build it.
_mixture("deepseek_v2", {**LATENT, "rope_scaling": DEEPSEEK_YARN_ROPE})
vary("text-deepseek_v2", "q-lora", q_lora_rank=32)
_mixture("deepseek_v3", {**LATENT_V3, "q_lora_rank": 32})
vary(
    "text-deepseek_v3",
    "rope yarn",
    rope_scaling={**DEEPSEEK_YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0},
)

_mixture("olmoe", {**LLAMA, **EXPERTS, "num_key_value_heads": 4})
_mixture("granitemoe", {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2})
_mixture(
    "phimoe",
    {
        **LLAMA,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 64,
        "rope_scaling": {**long_rope(16), "short_mscale": 1.2, "long_mscale": 1.2},
    },
)
_mixture(
    "glm4_moe",
    {
        **QWEN_TEXT,
        "norm_topk_prob": True,
        "n_group": 1,
        "head_dim": 16,
        "topk_group": 1,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "routed_scaling_factor": 1.0,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 64,
        "rope_scaling": None,
        "use_qk_norm": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
)
_mixture(
    "ernie4_5_moe",
    {
        **QWEN_TEXT,
        "head_dim": 16,
        "use_bias": False,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
)
_mixture(
    "bailing_moe",
    {
        **LLAMA,
        **EXPERTS,
        "num_shared_experts": 1,
        "first_k_dense_replace": 0,
        "topk_group": 1,
    },
)
_mixture(
    "dots1",
    {
        **LLAMA,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "scoring_func": "noaux_tc",
    },
)
