from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_magic.errors import CheckpointError, UntrustedCodeError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, resolve
from mlx_magic.models.checkpoints.remote_code import require_trust, wanted_code
from tests import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.good(tmp_path / "m")


def refusal(folder: Path) -> UntrustedCodeError:
    checkpoint = resolve(str(folder), aliases={})
    assert isinstance(checkpoint, Checkpoint)
    with pytest.raises(UntrustedCodeError) as caught:
        checkpoint.require_trust(False)
    checkpoint.require_trust(True)
    assert not checkpoints.mark_of(folder).exists()
    assert "evil" not in sys.modules
    assert "custom_model" not in sys.modules
    return caught.value


def test_plain_checkpoint_needs_no_code(folder: Path) -> None:
    (folder / "evil.py").write_text("not asked for")
    assert wanted_code(folder) == ()


def test_model_file_is_named(folder: Path) -> None:
    error = refusal(checkpoints.with_model_file(folder))
    assert error.wanted == ("config.json: model_file = 'evil.py'",)
    assert error.model == str(folder)
    text = str(error)
    assert "\n" not in text
    assert "config.json: model_file = 'evil.py'" in text
    assert "--trust-remote-code" in text


@pytest.mark.parametrize(
    ("file", "auto_class"),
    [
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModelForCausalLM"),
        ("processor_config.json", "AutoProcessor"),
        ("preprocessor_config.json", "AutoImageProcessor"),
        ("video_preprocessor_config.json", "AutoVideoProcessor"),
        ("generation_config.json", "AutoAnything"),
        ("qformer_tokenizer/tokenizer_config.json", "AutoAnything"),
    ],
)
def test_auto_map_is_found_in_every_config_file(folder: Path, file: str, auto_class: str) -> None:
    error = refusal(checkpoints.with_auto_map(folder, file, auto_class))
    assert error.wanted == (f"{file}: auto_map {auto_class} = 'evil.Evil'",)


def test_auto_map_of_a_tokenizer_is_named(folder: Path) -> None:
    error = refusal(checkpoints.with_auto_map(folder))
    assert error.wanted == ("tokenizer_config.json: auto_map AutoTokenizer = ['evil.Evil', None]",)


def test_old_form_of_auto_map_is_named(folder: Path) -> None:
    checkpoints.update_json(folder / "tokenizer_config.json", {"auto_map": ["evil.Evil", None]})
    assert wanted_code(folder) == ("tokenizer_config.json: auto_map = ['evil.Evil', None]",)


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"text_config": {"auto_map": {"AutoConfig": "e.E"}}}, "text_config.auto_map"),
        ({"parts": [{}, {"auto_map": {"AutoConfig": "e.E"}}]}, "parts[1].auto_map"),
        ({"a": {"b": {"auto_map": {"AutoConfig": "e.E"}}}}, "a.b.auto_map"),
    ],
)
def test_nested_auto_maps_are_named(folder: Path, part: dict[str, object], place: str) -> None:
    checkpoints.update_json(folder / "config.json", part)
    assert wanted_code(folder) == (f"config.json: {place} AutoConfig = 'e.E'",)


def test_code_of_another_repository_is_named(folder: Path) -> None:
    checkpoints.update_json(
        folder / "config.json", {"auto_map": {"AutoConfig": "other/repo--evil.Evil"}}
    )
    assert wanted_code(folder) == ("config.json: auto_map AutoConfig = 'other/repo--evil.Evil'",)


def test_key_with_control_characters_is_escaped(folder: Path) -> None:
    checkpoints.update_json(folder / "config.json", {"auto_map": {"a\n\x1b[2J": "e.E"}})
    assert str(refusal(folder)).isprintable()


@pytest.mark.parametrize("empty", [None, {}, [], ""])
def test_empty_auto_map_needs_no_code(folder: Path, empty: object) -> None:
    checkpoints.update_json(folder / "config.json", {"auto_map": empty})
    assert wanted_code(folder) == ()


def test_vocabulary_files_are_not_searched_for_auto_map(folder: Path) -> None:
    checkpoints.write_json(folder / "vocab.json", {"auto_map": 17})
    assert wanted_code(folder) == ()


def test_pickles_are_refused_as_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert wanted_code(folder) == ()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled weights"):
        resolve(str(folder), aliases={})


ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"


@pytest.mark.parametrize("model_type", ["smolvlm", "phi3_v", "molmo", "molmo2", "kimi_vl"])
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_chat_templates_need_no_code(folder: Path, model_type: str, file: str) -> None:
    """They are rendered in our sandbox: tests/backends/test_chat_template.py."""
    checkpoints.update_json(folder / "config.json", {"model_type": model_type})
    if file.endswith(".jinja"):
        (folder / file).write_text(ESCAPE)
    else:
        checkpoints.update_json(folder / file, {"chat_template": ESCAPE})
    assert wanted_code(folder) == ()


@pytest.mark.parametrize("model_type", ["moondream1", "moondream2", "moondream3"])
def test_code_that_the_library_fetches_is_named(folder: Path, model_type: str) -> None:
    checkpoints.update_json(folder / "config.json", {"model_type": model_type})
    (line,) = refusal(folder).wanted
    assert "another repository" in line


def test_long_list_is_truncated_only_in_the_message() -> None:
    wanted = tuple(f"{i}.json: auto_map" for i in range(5))
    with pytest.raises(UntrustedCodeError, match=r"2\.json: auto_map; and 2 more\)") as caught:
        require_trust(wanted, model="m", allowed=False)
    assert caught.value.wanted == wanted


@pytest.mark.model
def test_hostile_checkpoints_of_these_tests_run_code(folder: Path) -> None:
    """Control: without the refusal the code runs."""
    checkpoints.with_auto_map(checkpoints.with_model_file(folder), "config.json", "AutoConfig")
    mark = checkpoints.mark_of(folder)
    code = f"""
import pathlib
import mlx_vlm.utils, transformers
folder, mark = pathlib.Path({str(folder)!r}), pathlib.Path({str(mark)!r})
mlx_vlm.utils.get_model_and_args({{"model_type": "smolvlm", "model_file": "evil.py"}}, folder)
assert mark.read_text() == "custom_model"
mark.unlink()
transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert mark.read_text().endswith("evil")
"""
    home = {"HF_HOME": str(folder.parent / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=home, check=False
    )
    assert done.returncode == 0, done.stderr


def test_training_leftovers_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "trainer_state.json").write_text('{"loss": NaN}')
    assert wanted_code(tmp_path) == ()
