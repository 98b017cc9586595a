"""Downloads arrive the same whatever name of the Hub client is removed or changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import DownloadError, UntrustedCodeError
from mlx_magic.models import upstream_checks
from mlx_magic.models.checkpoints import architectures, remote_code
from mlx_magic.models.hub import upstream
from mlx_magic.models.hub.download import download
from mlx_magic.models.hub.resumable import PART
from mlx_magic.models.upstream_checks import Mechanism, Name
from tests import checkpoints, fake_hub
from tests.backends.upstream_cases import breaks, broken, named, recheck

MECHANISMS = [value for value in vars(upstream).values() if isinstance(value, Mechanism)]
REPO = "org/name"
WEIGHTS = {"model.a": ("F32", (64, 1024))}


@pytest.fixture(autouse=True)
def checked_again() -> Iterator[None]:
    yield
    recheck()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    import huggingface_hub

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    folder = checkpoints.good(tmp_path / "source")
    checkpoints.write_safetensors(folder / "model.safetensors", WEIGHTS)
    with fake_hub.running() as server:
        server.repos[REPO] = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield server
        huggingface_hub.close_session()


def fetched(hub: fake_hub.FakeHub, cache: Path) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Download the repository; return its files, and the last progress."""
    progress: list[tuple[int, int]] = []
    folder = download(
        REPO,
        cancel=CancelToken(),
        progress=lambda done, total: progress.append((done, total)),
        cache=cache,
        endpoint=hub.endpoint,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}, progress[-1]


@pytest.mark.parametrize(("mechanism", "name", "how"), breaks(MECHANISMS, every=True), ids=named)
def test_downloads_stay_the_same(
    mechanism: Mechanism,
    name: Name,
    how: str,
    hub: fake_hub.FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fetched(hub, tmp_path / "before")
    broken(monkeypatch, name, how)
    assert fetched(hub, tmp_path / "after") == before
    assert before[1][0] == before[1][1] > 0
    what = f"has no {name}" if how == "removed" else f"takes other arguments for {name}"
    assert mechanism.off == f"{mechanism.title} is off: {name.library} {what}"


def test_all_mechanisms_are_on() -> None:
    assert [mechanism.off for mechanism in MECHANISMS] == [None] * len(MECHANISMS)


def test_damaged_weights_are_refused_without_resuming(
    hub: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.spoilt.add("model.safetensors")
    broken(monkeypatch, upstream.RESUMABLE.needed[-1], "removed")
    with pytest.raises(DownloadError, match="damaged"):
        fetched(hub, tmp_path / "cache")
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not any(name.endswith(PART) for name in left)
    hub.spoilt.clear()
    assert fetched(hub, tmp_path / "cache") == fetched(hub, tmp_path / "other")


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HF_HOME"])
def test_folders_are_read_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    broken(monkeypatch, Name("huggingface_hub.constants", name), "removed")
    home = Path.home() / ".cache" / "huggingface"
    assert (upstream.home_folder(), upstream.cache_folder()) == (home, home / "hub")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert upstream.cache_folder() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/a")
    assert upstream.cache_folder() == Path("/a/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/b")
    assert upstream.cache_folder() == Path("/b")


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "moondream3"}, True),
        ({"model_type": "kimi_vl", "vision_config": {"a": 1}}, True),
        ({"model_type": "smolvlm", "vision_config": {"a": 1}}, False),
        ({"model_type": "llama"}, False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_models_that_could_fetch_code_are_refused_if_the_search_finds_nothing(
    config: dict[str, object], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.good(tmp_path / "model", config)
    monkeypatch.setattr(remote_code, "_fetches_code", lambda source: False)
    wanted = remote_code.wanted_code(folder)
    assert bool(wanted) is refused
    if refused:
        with pytest.raises(UntrustedCodeError, match="--trust-remote-code") as caught:
            remote_code.require_trust(wanted, model="m", allowed=False)
        assert str(remote_code.FETCHED_CODE.off) in str(caught.value)
        remote_code.require_trust(wanted, model="m", allowed=True)
        assert remote_code.FETCHED_CODE.off in upstream_checks.switched_off()


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "smolvlm", "vision_config": {"a": 1}}, True),
        ({"model_type": "llama", "vision_config": {"a": 1}}, True),
        ({"model_type": "llama"}, False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_only_text_models_are_trusted_if_mlx_vlm_has_another_layout(
    config: dict[str, object], refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = architectures.library
    monkeypatch.setattr(
        architectures, "library", lambda name: None if name == "mlx_vlm" else real(name)
    )
    folder = checkpoints.good(tmp_path / "model", config)
    assert bool(remote_code.wanted_code(folder)) is refused
