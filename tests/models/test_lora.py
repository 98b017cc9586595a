"""Adapters on disk: which are refused before a load, and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import CheckpointError, ModelError, ModelNotFoundError, UntrustedCodeError
from mlx_magic.models.checkpoints import lora as adapters
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints

PARAMETERS = {"rank": 4, "scale": 2.0, "dropout": 0.0}
CONFIG = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": PARAMETERS}


def good(folder: Path, config: Any = CONFIG, weights: str = "adapters.safetensors") -> Path:
    checkpoints.write_json(folder / "adapter_config.json", config)
    checkpoints.write_safetensors(folder / weights, {"layers.0.lora_a": ("F32", (4, 4))})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return good(tmp_path / "lora")


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "seer"))


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_valid_adapter_is_described_by_its_header(folder: Path, kind: Any) -> None:
    found = adapters.inspect(folder, kind, model="m")
    assert (found.path, found.nbytes, found.wants_code) == (folder.resolve(), 64, ())


def test_old_mlx_vlm_adapter_format_is_only_for_vision_models(tmp_path: Path) -> None:
    folder = good(tmp_path / "old", {"rank": 4, "alpha": 0.1}, "weights.safetensors")
    assert adapters.inspect(folder, "vision", model="m").nbytes == 64
    with pytest.raises(CheckpointError, match=r"has no adapters\.safetensors"):
        adapters.inspect(folder, "text", model="m")


def without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def with_config(content: str) -> Any:
    return lambda folder: (folder / "adapter_config.json").write_text(content)


def with_weights(name: str) -> Any:
    def spoil(folder: Path) -> None:
        (folder / "adapters.safetensors").rename(folder / name)

    return spoil


def cut_short(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def of_peft(folder: Path) -> None:
    checkpoints.write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 8})
    with_weights("adapter_model.safetensors")(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_config, r"has no adapter_config\.json"),
        (with_config("{"), r"adapter_config\.json"),
        (with_config("[]"), r"adapter_config\.json is not a JSON object"),
        (with_config('{"lora_parameters": {"rank": 4, "alpha": 1}}'), "has no scale, dropout, num"),
        (with_config("{}"), "has no rank, scale, dropout, num_layers"),
        (with_weights("adapter_model.bin"), "only pickled weights"),
        (with_weights("adapters.npz"), "only pickled weights"),
        (with_weights("other.safetensors"), r"has no adapters\.safetensors"),
        (of_peft, "in PEFT format"),
        (cut_short, r"adapters\.safetensors is cut short"),
    ],
)
def test_broken_adapter_is_an_error_of_one_line(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        adapters.inspect(folder, "text", model="m")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("m: ")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("")])
def test_adapter_path_that_is_not_a_folder_is_an_error_of_one_line(
    tmp_path: Path, make: Any
) -> None:
    make(tmp_path / "lora")
    with pytest.raises(ModelNotFoundError, match="name the folder"):
        adapters.inspect(tmp_path / "lora", "text", model="m")


def test_adapter_is_a_separate_model_beside_its_base(
    session: Session, script: ScriptedBackend, base: str, folder: Path
) -> None:
    plain = session.pool.submit_load(base, alias="plain").future.result(10)
    tuned = session.pool.submit_load("plain", adapter=str(folder)).future.result(10)
    assert plain is not None
    assert tuned is not None
    assert script.loads == 2
    assert (tuned.name, tuned.adapter) == ("plain+lora", str(folder))
    assert (plain.name, plain.adapter) == ("plain", None)
    assert tuned.nbytes == plain.nbytes + 64
    assert [m.names for m in session.pool] == [("plain",), ("plain+lora",)]
    # Each is found by its name, and nothing is loaded again.
    for name in ("plain", "plain+lora", base):
        session.start(GenerationRequest(prompt="Hi", model=name)).future.result(10)
    assert script.loads == 2
    session.pool.unload("plain+lora")
    assert [m.adapter for m in session.pool] == [None]
    # Its name is still known, and stands for both.
    session.start(GenerationRequest(prompt="Hi", model="plain+lora")).future.result(10)
    assert session.pool["plain+lora"].adapter == str(folder)


def test_two_adapters_of_one_base_are_two_models(
    session: Session, script: ScriptedBackend, base: str, tmp_path: Path
) -> None:
    for name in ("one", "two", "one"):
        session.pool.submit_load(base, adapter=str(good(tmp_path / name))).future.result(10)
    assert script.loads == 2
    assert sorted(m.name for m in session.pool) == ["seer+one", "seer+two"]


def test_alias_names_base_and_adapter_until_it_is_reused(
    session: Session, base: str, folder: Path
) -> None:
    session.pool.submit_load(base, alias="a", adapter=str(folder)).future.result(10)
    assert session.pool["a"].adapter == str(folder)
    session.pool.submit_load(base, alias="a").future.result(10)
    assert session.pool["a"].adapter is None


def test_missing_adapter_is_reported_before_any_fetch(
    session: Session, script: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlx_magic.models.hub.download.download", lambda *a, **k: pytest.fail("fetched")
    )
    load = session.pool.submit_load("org/name", adapter=str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFoundError, match=r"adapter .*nowhere is not there"):
        load.future.result(10)
    assert script.loads == 0
    assert "name+nowhere" not in session.aliases


def test_adapter_with_remote_code_is_refused_and_not_run(
    session: Session, script: ScriptedBackend, base: str, folder: Path
) -> None:
    checkpoints.with_model_file(folder)
    with pytest.raises(UntrustedCodeError, match=r"adapter's config\.json: model_file"):
        session.pool.submit_load(base, adapter=str(folder)).future.result(10)
    assert script.loads == 0
    info = session.pool.submit_load(
        base, adapter=str(folder), trust_remote_code=True
    ).future.result(10)
    assert info is not None
    assert info.trusted
    assert not checkpoints.mark_of(folder).exists()


def test_adapter_can_be_loaded_from_python(session: Session, base: str, folder: Path) -> None:
    assert session.pool.load(base, "a", adapter=folder).adapter == str(folder)
    with pytest.raises(ModelError):
        session.pool.load(base, adapter=folder / "nowhere")
