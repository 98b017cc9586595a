from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_magic.models.checkpoints.checkpoint import inspect
from tests.model_folders import CACHE, smollm2_folder
from tools.convert_smollm2 import language_name, main, mlx_name, tiny_text_folder, unpermuted

# As on a machine without a GPU: OpenBLAS first, and weights in float32.
ASK = """
import contextlib, ctypes, sys
with contextlib.suppress(OSError):
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
import mlx.core as mx
from mlx_lm import generate, load
model, tokenizer = load(sys.argv[1])
if not mx.metal.is_available():
    model.set_dtype(mx.float32)
turns = [{"role": "user", "content": sys.argv[2]}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
print(generate(model, tokenizer, prompt, max_tokens=12))
"""


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("token_embd.scales", "model.embed_tokens.scales"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.12.attn_q.scales", "model.layers.12.self_attn.q_proj.scales"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_vision_tensors_are_renamed(name: str, new: str) -> None:
    assert mlx_name(name) == new


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("language_model.norm.weight", "model.norm.weight"),
        ("language_model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.text_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_model.post_layernorm.weight", None),
        ("connector.modality_projection.proj.weight", None),
    ],
)
def test_language_model_tensors_are_renamed(name: str, new: str | None) -> None:
    assert language_name(name) == new


def test_rows_of_each_attention_head_are_restored() -> None:
    import mlx.core as mx

    # Two heads of four rows; llama.cpp stores each as 0, 2, 1, 3.
    stored = mx.array([0, 2, 1, 3, 4, 6, 5, 7])[:, None]
    assert unpermuted(stored, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_command_reports_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: python -m tools.convert_smollm2" in capsys.readouterr().err
    assert main([str(tmp_path / "none.gguf"), str(tmp_path / "out")]) == 1
    assert "There is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_wheel_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make smollm2"):
        smollm2_folder(tmp_path)


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france() -> None:
    folder = smollm2_folder(CACHE)
    assert folder == smollm2_folder(CACHE)
    checkpoint = inspect(folder, "smollm2")
    assert (checkpoint.kind, checkpoint.model_type) == ("text", "llama")
    assert checkpoint.quantization == "4-bit, group 32"
    asked = [sys.executable, "-c", ASK, str(folder), "What is the capital of France?"]
    out = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "The capital of France is Paris."


TEXT = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
VISION = {
    "model_type": "smolvlm_vision", "hidden_size": 32, "intermediate_size": 48, "image_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 8,
}  # fmt: skip


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of mlx-vlm's imports
def test_language_model_alone_computes_the_same(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model
    from mlx_vlm.models import smolvlm

    config = {"model_type": "smolvlm", "text_config": TEXT, "vision_config": VISION}
    settings = smolvlm.ModelConfig.from_dict(config)
    settings.text_config = smolvlm.TextConfig.from_dict(TEXT)
    settings.vision_config = smolvlm.VisionConfig.from_dict(VISION)
    whole = smolvlm.Model(settings)
    vlm = tmp_path / "vlm"
    vlm.mkdir()
    mx.save_safetensors(str(vlm / "model.safetensors"), dict(tree_flatten(whole.parameters())))
    (vlm / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    (vlm / "tokenizer.json").write_text("{}")

    folder = tiny_text_folder(vlm, tmp_path / "text")
    assert inspect(folder, "half").kind == "text"
    half, read = load_model(folder)
    assert read["eos_token_id"] == 3
    tokens = mx.array([[1, 5, 9, 2, 40, 63]])
    assert mx.allclose(whole.language_model(tokens).logits, half(tokens), atol=1e-4).item()
