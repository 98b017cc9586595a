"""The panel's rows of models: whether they fit, adapters, download progress."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken
from mlx_magic.notebook.display.tables import ModelTable, StatusTable
from mlx_magic.notebook.panel.control.models import row_html
from mlx_magic.notebook.panel.state.model_choices import ModelChoice, choices
from mlx_magic.session import Session
from mlx_magic.testing import ManualClock, ScriptedBackend, scripted_session
from tests import checkpoints
from tests.models.test_local_models import snapshot

MB = 10**6


@pytest.fixture
def script() -> ScriptedBackend:
    return ScriptedBackend("Yes.")


@pytest.fixture
def session(script: ScriptedBackend, clock: ManualClock) -> Iterator[Session]:
    session = scripted_session(backend=script, clock=clock)
    yield session
    session.close()


def listed(session: Session) -> dict[str, ModelChoice]:
    return {choice.name: choice for choice in choices(session, session.on_disk())}


@pytest.mark.parametrize(("limit", "words"), [(96, "fits"), (95, "does not fit now"), (0, None)])
def test_model_on_disk_shows_whether_it_fits_now(
    session: Session,
    script: ScriptedBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    words: str | None,
) -> None:
    checkpoints.good(tmp_path / "seer")
    session.names.look_in([str(tmp_path)])
    monkeypatch.setattr(platform, "is_gpu", lambda: True)
    script.total = limit
    said = listed(session)["seer"].line.split(" · ")
    assert said == ["vision", "smolvlm", "96 B", *([words] if words else [])]


def test_a_model_with_an_adapter_has_a_row_beside_its_base(
    session: Session, tmp_path: Path
) -> None:
    base = str(checkpoints.good(tmp_path / "seer"))
    checkpoints.write_json(tmp_path / "lora" / "adapter_config.json", {"rank": 2})
    checkpoints.write_safetensors(tmp_path / "lora" / "adapters.safetensors")
    session.pool.submit_load(base, alias="plain").future.result(10)
    session.pool.submit_load(base, alias="tuned", adapter=str(tmp_path / "lora")).future.result(10)
    found = listed(session)
    assert found["tuned"].details == "smolvlm · adapter lora"
    session.pool.unload("plain")
    assert listed(session)["plain"].state == "on disk"
    session.pool.unload("tuned")
    tuned = listed(session)["tuned"]
    assert (tuned.state, tuned.details) == ("on disk", "adapter lora")


def test_download_shows_bytes_rate_and_remaining_time(
    session: Session, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def download(repo_id: str, *, cancel: CancelToken, progress: object, **_: object) -> Path:
        assert callable(progress)
        progress(100 * MB, 1_000 * MB)
        clock.advance(4)
        progress(140 * MB, 1_000 * MB)
        begun.set()
        assert go_on.wait(30)
        cancel.checkpoint()
        raise AssertionError("not cancelled")

    monkeypatch.setattr("mlx_magic.models.hub.download.download", download)
    load = session.pool.submit_load("org/far")
    assert begun.wait(30)
    row = row_html(listed(session)["org/far"])
    assert "140 MB of 1.0 GB · 10 MB/s · 2 min left" in row
    assert 'style="width:14.0%"' in row
    status = repr(StatusTable.of(session, default=None))
    assert "140 MB of 1.0 GB · 10 MB/s · 2 min left" in status
    load.cancel()
    go_on.set()
    assert load.future.result(10) is None


def test_model_with_remote_code_permission_is_marked(session: Session, tmp_path: Path) -> None:
    folder = checkpoints.with_model_file(checkpoints.good(tmp_path / "evil"))
    session.pool.submit_load(str(folder), alias="e", trust_remote_code=True).future.result(10)
    assert "remote code allowed" in listed(session)["e"].line
    session.pool.unload("e")
    assert listed(session)["e"].state == "unusable"


def test_cancelled_download_can_be_resumed_by_its_button(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoints.with_missing_shard(snapshot(tmp_path, "org/far"))
    choice = listed(session)["org/far"]
    assert (choice.state, choice.problem) == ("on disk", "")
    assert choice.line.endswith("partly downloaded")
    assert "partly downloaded: load it" in repr(ModelTable.of(session))
