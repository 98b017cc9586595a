"""Absurd numbers are refused and named; those of real models are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.errors import CheckpointError
from mlx_magic.models.checkpoints.config_limits import require_dimensions, require_image_sizes

GB = 10**9

# As published.
REAL: dict[str, tuple[dict[str, Any], int, int]] = {
    "Qwen2.5-VL-7B": (
        {"model_type": "qwen2_5_vl", "hidden_size": 3584, "num_hidden_layers": 28,
         "vocab_size": 152064, "max_position_embeddings": 128000, "max_window_layers": 28,
         "vision_config": {"depth": 32, "hidden_size": 1280, "patch_size": 14, "window_size": 112,
                           "fullatt_block_indexes": [7, 15, 23, 31]}},
        729, 16 * GB,
    ),
    "Llama-4-Scout": (
        {"text_config": {"num_hidden_layers": 48, "hidden_size": 5120, "vocab_size": 202048,
                         "num_local_experts": 16, "max_position_embeddings": 10485760,
                         "attention_chunk_size": 8192, "rope_theta": 500000.0}},
        1093, 217 * GB,
    ),
    "Kimi-K2": (
        {"num_hidden_layers": 61, "n_routed_experts": 384, "vocab_size": 163840,
         "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512},
        1500, 500 * GB,
    ),
    "gemma-3n": (
        {"text_config": {"hidden_size": 2048, "num_hidden_layers": 35, "vocab_size": 262400,
                         "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
                         "intermediate_size": [16384] * 35, "num_kv_shared_layers": 15},
         "audio_config": {"vocab_size": 128, "hidden_size": 1536}},
        2000, 4 * GB,
    ),
    "Mamba": (
        {"num_hidden_layers": 64, "hidden_size": 2560, "vocab_size": 50280, "state_size": 16,
         "time_step_limit": [0.0, float("inf")], "n_layer": 64},
        643, 11 * GB,
    ),
    "LLaVA": (
        {"vision_feature_layer": -2, "mm_vision_select_layer": -2, "image_token_index": 32000,
         "text_config": {"vocab_size": 32064, "hidden_size": 4096, "num_hidden_layers": 32},
         "vision_config": {"image_size": 336, "vocab_size": 32000, "hidden_size": 1024,
                           "projection_dim": 768, "num_hidden_layers": 24}},
        686, 14 * GB,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_are_accepted(name: str) -> None:
    config, tensors, nbytes = REAL[name]
    require_dimensions(config, tensors=tensors, nbytes=nbytes, model="m")


PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136,
                   "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
    "qwen3_vl": {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16,
                 "size": {"longest_edge": 16777216, "shortest_edge": 65536}},
    "qwen3_vl film": {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16,
                      "size": {"longest_edge": 25165824, "shortest_edge": 4096}},
    "glm4v": {"image_processor_type": "Glm4vImageProcessor", "patch_size": 14,
              "size": {"shortest_edge": 12544, "longest_edge": 9633792}},
    "idefics3": {"image_processor_type": "Idefics3ImageProcessor",
                 "size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
    "llava_onevision": {"image_processor_type": "LlavaOnevisionImageProcessor",
                        "size": {"height": 384, "width": 384},
                        "image_grid_pinpoints": [[384 * a, 384 * b] for a in range(1, 7)
                                                 for b in range(1, 7)]},
    "pixtral": {"image_processor_type": "PixtralImageProcessor", "patch_size": {"height": 16,
                "width": 16}, "size": {"longest_edge": 1024}},
    "phi3_v": {"image_processor_type": "Phi3VImageProcessor", "num_crops": 16,
               "num_img_tokens": 144},
    "mllama": {"image_processor_type": "MllamaImageProcessor", "max_image_tiles": 4,
               "size": {"height": 560, "width": 560}},
    "kimi": {"media_proc_cfg": {"in_patch_limit": 16384, "patch_size": 14,
                                "in_patch_limit_each_frame": 4096}},
    "lfm2_vl": {"image_processor_type": "Lfm2VlImageProcessorFast", "max_num_patches": 1024,
                "max_tiles": 10, "tile_size": 512, "size": {"height": 512, "width": 512}},
    "clip": {"size": 224, "crop_size": 224, "resample": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_real_processor_configurations_are_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    require_image_sizes(tmp_path, {"model_type": name.split()[0]}, model="m")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but the weights have 60"),
        ({"n_layers": 300}, "n_layers = 300, but the weights have 60 tensors"),
        ({"text_config": {"num_layers": 10**6}}, "text_config.num_layers = 1000000"),
        ({"hidden_size": -1}, "hidden_size = -1, but it cannot be negative"),
        ({"intermediate_size": 2**62}, "intermediate_size"),
        ({"num_experts": 10**9}, "num_experts"),
        ({"depths": [2, 10**9]}, "depths = 1000000000"),
        ({"vision_config": {"image_size": 10**6}}, "vision_config.image_size"),
        ({"parts": [{"deep": {"num_layers": 10**9}}]}, "parts.deep.num_layers"),
        ({"vocab_size": 10**7, "hidden_size": 4096}, "which would take more than all its weights"),
        ({"a\x1b[2J": {"num_layers": 10**9}}, "a.num_layers"),
    ],
)
def test_absurd_dimensions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_dimensions(changes, tensors=60, nbytes=10**6, model="m")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("CLIPImageProcessor", {"size": {"shortest_edge": 10**8, "longest_edge": 10**8}}),
        ("CLIPImageProcessor", {"size": [10**6, 10**6]}),
        ("Qwen2VLImageProcessor", {"size": {"longest_edge": 10**10}}),
        ("Qwen2VLImageProcessor", {"min_pixels": 2**40}),
        ("Qwen2VLImageProcessor", {"max_pixels": 2**27, "patch_size": 2}),
        ("X", {"image_processor": {"max_image_size": {"longest_edge": 10**6}}}),
        ("X", {"max_dynamic_patch": 10**6}),
        ("X", {"num_image_tokens": 10**9}),
        ("X", {"patch_size": 0}),
    ],
)
def test_absurd_image_sizes_are_refused(tmp_path: Path, kind: str, entries: dict[str, Any]) -> None:
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor_type": kind, **entries}))
    with pytest.raises(CheckpointError, match=r"^m: processor_config.json says \S+ = [\d.]+, but"):
        require_image_sizes(tmp_path, {}, model="m")
