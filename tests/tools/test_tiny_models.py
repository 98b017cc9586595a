from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools.tiny_models.__main__ import main
from tools.tiny_models.spec import TinyModel, all_models, build, find, shrunk

ROOT = Path(__file__).parent.parent.parent


def digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_names_are_unique_folder_names() -> None:
    counts = Counter(model.name for model in all_models())
    assert [name for name, count in counts.items() if count > 1] == []
    assert [name for name in counts if Path(name).name != name or " " in name] == []


def test_names_of_text_models_start_with_text() -> None:
    for model in all_models():
        assert model.name.startswith("text-") == (model.library == "mlx-lm"), model.name


def test_each_architecture_has_one_model_without_a_variant() -> None:
    first = Counter((m.library, m.architecture) for m in all_models() if not m.variant)
    assert set(first) == {(model.library, model.architecture) for model in all_models()}
    assert set(first.values()) == {1}


def test_the_ten_most_used_have_a_4_bit_variant() -> None:
    most_used = [model.name for model in all_models() if model.most_used]
    assert len(most_used) == 10
    assert [find(f"{name}-4bit").variant for name in most_used] == ["4-bit"] * 10


def test_find_raises_for_an_unknown_name() -> None:
    with pytest.raises(KeyError):
        find("no-such-model")


def test_a_second_process_builds_the_same_bytes(tmp_path: Path) -> None:
    names = ["qwen2_vl", "text-llama-4bit"]
    command = [sys.executable, "-m", "tools.tiny_models", str(tmp_path / "there"), *names]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    for name in names:
        build(find(name), tmp_path / "here" / name)
        assert digest(tmp_path / "here" / name) == digest(tmp_path / "there" / name)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build(TinyModel("broken", "mlx-lm", "llama", broken), tmp_path / "broken")
    assert list(tmp_path.iterdir()) == []


def test_a_build_replaces_what_the_folder_held(tmp_path: Path) -> None:
    def small(folder: Path) -> None:
        (folder / "new").touch()

    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "old").touch()
    build(TinyModel("small", "mlx-lm", "llama", small), tmp_path / "small")
    assert [path.name for path in tmp_path.rglob("*")] == ["small", "new"]


def test_the_command_rejects_an_unknown_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "no-such-model"])
    assert "no such model: no-such-model" in capsys.readouterr().err


def test_command_builds_the_named_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "text-gemma-mha"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["text-gemma-mha"]
    assert capsys.readouterr().out.startswith("text-gemma-mha: ")


def test_shrunk_patches_once() -> None:
    from mlx_vlm.models.fastvlm.config import VisionConfig

    shrunk("fastvlm")
    first = VisionConfig.embed_dims
    shrunk("fastvlm")
    assert VisionConfig.embed_dims is first
    assert max(first) == 64


@pytest.mark.model
@pytest.mark.parametrize("name", ["text-llama", "text-llama-4bit"])
def test_mlx_lm_answers_with_a_built_checkpoint(tmp_path: Path, name: str) -> None:
    from mlx_lm import load, stream_generate

    build(find(name), tmp_path / name)
    model, tokenizer = load(str(tmp_path / name))[:2]

    def answer(words: str) -> list[int]:
        turns = [{"role": "user", "content": words}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        return [step.token for step in stream_generate(model, tokenizer, prompt, max_tokens=8)]

    assert len(answer("What is shown here?")) == 8
    assert answer("What is shown here?") != answer("Count the birds, please.")
