"""The summary of a model before it is loaded or fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.errors import DownloadError, ModelNotFoundError
from mlx_magic.model_pool.pool import fits
from mlx_magic.models.catalog import model_summary
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.catalog.model_summary import ModelSummary
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend, scripted_session
from tests import checkpoints, fake_hub

REPO = "org/name"
CONFIG = {
    **checkpoints.VISION_CONFIG,
    "quantization": {"bits": 4, "group_size": 64},
    "text_config": {"max_position_embeddings": 4096},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    import huggingface_hub

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface_hub.close_session()
    with fake_hub.running() as server:
        yield server
        huggingface_hub.close_session()


def published(hub: fake_hub.FakeHub, **files: bytes) -> None:
    hub.repos[REPO] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model-1.safetensors": bytes(1000),
        "model-2.safetensors": bytes(500),
        "tokenizer.json": b"{}",
        **files,
    }


def test_folder_is_summarized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: False)
    folder = checkpoints.good(tmp_path / "seer", CONFIG)
    checkpoints.write_json(folder / "processor_config.json", {"image_seq_len": 64})
    assert model_summary.read(str(folder), Names(), float32=platform.wants_float32) == ModelSummary(
        str(folder),
        str(folder),
        "vision",
        "smolvlm",
        "4-bit, group 64",
        96,
        128,
        4096,
        64,
        together=Verdict(True, True),
    )


def test_unknown_values_are_not_guessed(tmp_path: Path) -> None:
    found = model_summary.read(
        str(checkpoints.good_text(tmp_path / "m")), Names(), float32=platform.wants_float32
    )
    assert (found.context, found.image_tokens, found.quantization) == (None, None, None)


def test_context_includes_the_scaling_of_positions(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4}}
    folder = checkpoints.good_text(tmp_path / "m")
    read = json.loads((folder / "config.json").read_text())
    checkpoints.write_json(folder / "config.json", {**read, **config})
    found = model_summary.read(str(folder), Names(), float32=platform.wants_float32)
    assert found.context == 16_384


def test_repository_summary_fetches_only_config_json_and_keeps_nothing(
    hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    published(hub)
    found = model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    assert found == ModelSummary(
        REPO,
        f"Hub: {REPO}",
        "vision",
        "smolvlm",
        "4-bit, group 64",
        1500,
        1500,
        4096,
        None,
        together=Verdict(True, True),
    )
    assert hub.fetched == ["config.json"]
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("changes", "wanted", "problem"),
    [
        ({"model_file": "evil.py"}, "model_file = 'evil.py'", ""),
        ({"model_type": "hologram9000"}, "", "hologram9000"),
    ],
)
def test_repository_summary_names_remote_code_and_problems(
    hub: fake_hub.FakeHub, changes: dict[str, str], wanted: str, problem: str
) -> None:
    published(hub, **{"config.json": json.dumps({**CONFIG, **changes}).encode()})
    found = model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    assert wanted in " ".join(found.wants_code)
    assert bool(wanted) == bool(found.wants_code)
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)


def test_repository_with_only_pickles_is_reported(hub: fake_hub.FakeHub) -> None:
    hub.repos[REPO] = {
        "config.json": json.dumps(CONFIG).encode(),
        "pytorch_model.bin": b"\x80\x04.",
    }
    found = model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    assert "no safetensors weights" in found.problem
    assert found.nbytes == 0


@pytest.mark.parametrize(
    ("refusal", "words"),
    [((404, "RepoNotFound"), "is not on the Hub"), ((403, "GatedRepo"), "is gated")],
)
def test_hub_refusal_is_an_error_of_one_line(
    hub: fake_hub.FakeHub, refusal: tuple[int, str], words: str
) -> None:
    hub.refusals[REPO] = refusal
    with pytest.raises(DownloadError, match=words) as caught:
        model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    assert "\n" not in str(caught.value)


def test_no_request_is_sent_offline(hub: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    published(hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="unset HF_HUB_OFFLINE"):
        model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    assert hub.fetched == []


def test_unknown_name_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        model_summary.read("nothing", Names(), float32=platform.wants_float32)


def test_model_fits_if_a_load_would_be_admitted(session: Session, tmp_path: Path) -> None:
    pool = session.pool
    assert fits(pool, 10**15) is False
    pool.budget = 300
    assert fits(pool, 300) is True
    assert fits(pool, 301) is False
    assert fits(pool, 0) is None
    for name in ("used", "pinned", "idle"):
        folder = str(checkpoints.good(tmp_path / name))
        session.pool.submit_load(folder, alias=name, pin=name == "pinned").future.result(10)
    # Idle models would be evicted; pinned ones and those in use would not.
    assert fits(pool, 300 - 96) is True
    with pool.lease("used"):
        assert fits(pool, 300 - 2 * 96) is True
        assert fits(pool, 300 - 2 * 96 + 1) is False
        # A load says the same.
        checkpoints.good(tmp_path / "another")
        session.pool.submit_load(str(tmp_path / "another")).future.result(10)
        assert "idle" not in pool
    pool.unpin("pinned")
    assert fits(pool, 300) is True


def test_fit_is_unknown_without_a_memory_limit() -> None:
    script = ScriptedBackend("Yes.")
    script.total = 0
    session = scripted_session(backend=script)
    assert fits(session.pool, 10**15) is None
    session.close()
