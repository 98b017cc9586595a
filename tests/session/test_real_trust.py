"""Checkpoints that leave a mark file if their code runs, loaded through the libraries."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mlx_magic
from tests import checkpoints
from tests.model_folders import smollm2_folder
from tools.tiny_models.spec import build, find

pytestmark = pytest.mark.model

# Loads a checkpoint without permission, and says why not; then with it, in the same process.
LOADS = """
import json, pathlib, sys
from mlx_magic import default_session
folder, mark = sys.argv[1], pathlib.Path(sys.argv[2])
now = default_session.current()
said = []
for trusted in (False, True):
    error = now.pool.submit_load(folder, trust_remote_code=trusted).future.exception(240)
    said.append([type(error).__name__, str(error), mark.exists()])
now.close()
print(json.dumps(said))
"""


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def with_pickle(folder: Path, name: str = "pytorch_model.bin") -> Path:
    (folder / name).write_bytes(pickle.dumps(Payload(checkpoints.mark_of(folder))))
    return folder


def copied(kind: str, folder: Path) -> Path:
    source = mlx_magic.demo_model() if kind == "vision" else smollm2_folder()
    shutil.copytree(source, folder)
    return folder


def loaded(folder: Path, code: str = LOADS) -> list[list[object]]:
    home = str(folder.parent / "home")
    environment = {**os.environ, "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(checkpoints.mark_of(folder))],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    said: list[list[object]] = json.loads(done.stdout.splitlines()[-1])
    return said


# Loads a checkpoint, asks it a question, and says how both went.
ASKS = """
import json, pathlib, sys
import mlx_magic
from mlx_magic import default_session
folder, mark = sys.argv[1], pathlib.Path(sys.argv[2])
now = default_session.current()
said = []
for trusted in (False, True):
    error = now.pool.submit_load(folder, trust_remote_code=trusted).future.exception(240)
    said.append([type(error).__name__, str(error), mark.exists()])
    try:
        mlx_magic.ask("Hi", model=folder, max_tokens=2)
    except Exception as error:
        said.append([type(error).__name__, str(error), mark.exists()])
now.close()
print(json.dumps(said))
"""


HOSTILE: list[tuple[str, Callable[[Path], Path], str]] = [
    ("vision", checkpoints.with_model_file, "config.json: model_file"),
    ("text", checkpoints.with_model_file, "config.json: model_file"),
    ("text", checkpoints.with_auto_map, "tokenizer_config.json: auto_map AutoTokenizer"),
    ("vision", checkpoints.with_auto_map, "tokenizer_config.json: auto_map AutoTokenizer"),
    (
        "vision",
        partial(
            checkpoints.with_auto_map,
            file="preprocessor_config.json",
            auto_class="AutoImageProcessor",
        ),
        "preprocessor_config.json: auto_map AutoImageProcessor",
    ),
]


@pytest.mark.parametrize(("kind", "spoil", "words"), HOSTILE)
def test_remote_code_runs_only_with_permission(
    tmp_path: Path, kind: str, spoil: Callable[[Path], Path], words: str
) -> None:
    folder = spoil(copied(kind, tmp_path / "m"))
    refused, allowed = loaded(folder)
    assert refused[0] == "UntrustedCodeError"
    assert words in str(refused[1])
    assert refused[2] is False
    # Control: without the refusal it runs.
    assert allowed[2] is True


@pytest.mark.parametrize("kind", ["vision", "text"])
@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
            "its chat template was stopped, because it tries to run code ('__init__' of a type)",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
            "{% endfor %}{% endfor %}{% endfor %}",
            "its chat template was stopped (it runs for longer than 2 s)",
        ),
    ],
    ids=["code", "time"],
)
def test_hostile_chat_template_is_stopped_even_with_permission(
    tmp_path: Path, kind: str, template: str, words: str
) -> None:
    folder = copied(kind, tmp_path / "m")
    template = template.replace("MARK", str(checkpoints.mark_of(folder)))
    (folder / "chat_template.jinja").write_text(template)
    said = loaded(folder, ASKS)
    assert [line[0] for line in said] == ["NoneType", "GenerationError"] * 2
    for error, text, mark in said:
        assert mark is False
        assert error == "NoneType" or words in str(text)
        assert "\n" not in str(text)


@pytest.mark.parametrize("kind", ["vision", "text"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_even_with_permission(
    tmp_path: Path, kind: str, name: str
) -> None:
    folder = with_pickle(copied(kind, tmp_path / "m"), name)
    with (folder / name).open("rb") as file:
        pickle.load(file)
    checkpoints.mark_of(folder).unlink()  # control: the pickle runs
    for file_ in folder.glob("*.safetensors*"):
        file_.unlink()
    for error, text, mark in loaded(folder):
        assert error == "CheckpointError"
        assert f"pickled weights ({name})" in str(text)
        assert mark is False


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_pickles_beside_safetensors_are_not_read(tmp_path: Path, kind: str) -> None:
    for error, _, mark in loaded(with_pickle(copied(kind, tmp_path / "m"))):
        assert error == "NoneType"
        assert mark is False


# Loads several in one process, with `trust` blind: what is left is the guard of the load.
BLIND = """
import json, pathlib, sys
from mlx_magic import default_session
from mlx_magic.models.checkpoints import remote_code as trust
trust.wanted_code = lambda folder, **options: ()
now = default_session.current()
said = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if not folder.is_dir():
        continue
    mark = folder.with_name(folder.name + ".ran")
    said[folder.name] = []
    for trusted in (False, True):
        error = now.pool.submit_load(str(folder), trust_remote_code=trusted).future.exception(240)
        said[folder.name].append([type(error).__name__, str(error), mark.exists()])
now.close()
print(json.dumps(said))
"""


def test_load_runs_no_code_even_if_the_config_check_missed_it(tmp_path: Path) -> None:
    place = tmp_path / "all"
    place.mkdir()
    for kind in ("vision", "text"):
        checkpoints.with_model_file(copied(kind, place / f"{kind}-file"))
        checkpoints.with_auto_map(copied(kind, place / f"{kind}-map"))
    for name in ("internvl_chat", "kimi_vl", "text-llama"):
        build(find(name), place / name)
        (place / name / "tokenizer_config.json").write_text('{"tokenizer_class": "EvilTokenizer"}')
        checkpoints.with_auto_map(place / name)
    said: Any = loaded(place, BLIND)
    for name, (refused, allowed) in said.items():
        assert refused[2] is False, name
        assert "\n" not in str(refused[1])
        # Control: with permission the same load runs it. (What the
        # processor of internvl_chat runs by itself, tests/hostile/test_loaders.py shows.)
        assert allowed[2] is True or name == "internvl_chat", name
        assert refused[0] in {"UntrustedCodeError", "CheckpointError", "NoneType"}
    # mlx-vlm imports a model_file whatever it is told.
    assert said["vision-file"][0][0] == "UntrustedCodeError"
