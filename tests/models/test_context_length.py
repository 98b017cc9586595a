"""The context of a model, as its config.json gives it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.models.checkpoints.config_limits import context_length

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"llm_config": {"n_positions": 1024}, "max_position_embeddings": 7}, 1024),
        ({"text_config": {}, "seq_length": 2048}, 2048),
        # Qwen gives the length before the scaling, DeepSeek the one after it.
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131072,
        ),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "default"}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"mrope_section": [1, 2, 3]}}, 64),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": "64"}, None),
    ],
)
def test_context_is_read_from_the_configuration(config: dict[str, Any], tokens: int | None) -> None:
    assert context_length(config) == tokens


@given(
    st.dictionaries(
        st.sampled_from(
            ["max_position_embeddings", "rope_scaling", "text_config", "n_positions", "factor"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.dictionaries(
                st.sampled_from(["factor", "type", "original_max_position_embeddings"]), inner
            ),
            max_leaves=5,
        ),
    )
)
def test_any_configuration_gives_a_count_or_none(config: dict[str, Any]) -> None:
    found = context_length(config)
    assert found is None or found > 0
