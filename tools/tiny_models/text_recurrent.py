"""Text models with recurrent, convolutional or state-space layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.tiny_models.making import LLAMA, QWEN_TEXT, Config, text_model
from tools.tiny_models.spec import text, vary
from tools.tiny_models.text_dense import GRANITE
from tools.tiny_models.text_mixture import EXPERTS

LINEAR_ATTENTION: Config = {
    **QWEN_TEXT,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}
QWEN3_5: Config = {
    **LINEAR_ATTENTION,
    "model_type": "qwen3_5_text",
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}


def _recurrent(architecture: str, config: Config, **registered: Any) -> None:
    config = {"model_type": architecture, **config}
    text(architecture, **registered)(partial(text_model, config=config))


_recurrent(
    "mamba",
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 8,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "tie_word_embeddings": False,
    },
)
_recurrent(
    "mamba2",
    {
        "num_heads": 8,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 16,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": 4,
    },
)
_recurrent(
    "qwen3_next",
    {
        **LINEAR_ATTENTION,
        **EXPERTS,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [],
        "partial_rotary_factor": 0.25,
    },
)
_recurrent("qwen3_5", {"text_config": QWEN3_5})
vary("text-qwen3_5", "mqa", num_key_value_heads=1)
_recurrent(
    "qwen3_5_moe",
    {"text_config": {**QWEN3_5, **EXPERTS, "shared_expert_intermediate_size": 64}},
)
_recurrent(
    "recurrent_gemma",
    {
        "attention_bias": False,
        "conv1d_width": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "logits_soft_cap": 30.0,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_window_size": 32,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
)
LFM2: Config = {
    **LLAMA,
    "num_hidden_layers": 3,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "layer_types": ["conv", "full_attention", "conv"],
}
_recurrent(
    "lfm2",
    {
        **LFM2,
        "block_dim": 64,
        "block_ff_dim": 128,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
)
_recurrent("lfm2_moe", {**LFM2, **EXPERTS, "use_expert_bias": True, "num_dense_layers": 1})
_recurrent(
    "falcon_h1",
    {
        **LLAMA,
        "head_dim": 16,
        "mamba_d_conv": 4,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_n_heads": 4,
        "attention_out_multiplier": 1.0,
        "ssm_out_multiplier": 1.0,
        "lm_head_multiplier": 1.0,
    },
)
GRANITE_HYBRID: Config = {
    **GRANITE,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_proj_bias": False,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_conv_bias": True,
    "position_embedding_type": "nope",
}
_recurrent("granitemoehybrid", GRANITE_HYBRID)
vary(
    "text-granitemoehybrid",
    "moe",
    num_local_experts=4,
    num_experts_per_tok=2,
    intermediate_size=64,
)
# As Granite 4.0 Micro.
vary(
    "text-granitemoehybrid",
    "attention",
    layer_types=["attention"] * 3,
    position_embedding_type="rope",
)
_recurrent(
    "nemotron_h",
    {
        **LLAMA,
        "head_dim": 16,
        "attention_bias": False,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "hybrid_override_pattern": ["M", "*", "-", "M"],
    },
)
_recurrent(
    "jamba",
    {
        **LLAMA,
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
)
