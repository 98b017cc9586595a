from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import (
    CheckpointError,
    DownloadError,
    UnsupportedModelError,
    UntrustedCodeError,
)
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, RemoteCheckpoint, resolve
from mlx_magic.models.hub.download import download
from mlx_magic.testing import scripted_session
from tests import checkpoints, fake_hub

CHUNK = 4096
REPO = "org/name"
WEIGHTS = {"model.a": ("F32", (64, 1024)), "model.b": ("F16", (1024,))}


def ignored(done: int, total: int) -> None:
    pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    import huggingface_hub

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    huggingface_hub.close_session()
    with fake_hub.running() as server:
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again without its pauses."""
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = checkpoints.good(tmp_path / "source")
    checkpoints.write_safetensors(folder / "model.safetensors", WEIGHTS)
    (folder / "README.md").write_text("not needed")
    (folder / "extra.py").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    return folder


def fetch_all(hub: fake_hub.FakeHub, cache: Path) -> Path:
    """Download the whole repository without progress or cancellation."""
    return download(
        REPO, cancel=CancelToken(), progress=ignored, cache=cache, endpoint=hub.endpoint
    )


def publish(hub: fake_hub.FakeHub, folder: Path) -> None:
    hub.repos[REPO] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_only_files_that_a_model_needs_are_fetched(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    seen: list[tuple[int, int]] = []
    threads: set[threading.Thread] = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.current_thread())

    cache = tmp_path / "cache"
    assert isinstance(resolve(REPO, aliases={}, cache=cache), RemoteCheckpoint)
    path = download(
        REPO, cancel=CancelToken(), progress=progress, cache=cache, endpoint=hub.endpoint
    )
    needed = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {file.name for file in path.iterdir()} == needed
    assert hub.fetched[-1] == "model.safetensors"
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]
    size = sum(len(hub.repos[REPO][name]) for name in needed)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
    found = resolve(REPO, aliases={}, cache=cache, offline=True)
    assert isinstance(found, Checkpoint)
    assert found.path == path


def test_weights_that_no_library_reads_are_not_fetched(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    weights = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    others = ["consolidated.safetensors", "extra.safetensors", "original/model.safetensors"]
    (folder / "original").mkdir()
    for name in [*weights, *others]:
        checkpoints.write_safetensors(folder / name, {name: ("F32", (4,))})
    index = {"model.a": weights[0], "model.b": weights[1]}
    checkpoints.write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    publish(hub, folder)
    fetch_all(hub, tmp_path)
    fetched = [name for name in hub.fetched if name.endswith(".safetensors")]
    assert sorted(fetched) == weights


def test_weights_in_subfolders_are_not_fetched(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "original").mkdir()
    checkpoints.write_safetensors(folder / "original" / "model.safetensors")
    publish(hub, folder)
    fetch_all(hub, tmp_path)
    fetched = [name for name in hub.fetched if name.endswith(".safetensors")]
    assert fetched == ["model.safetensors"]


@pytest.mark.usefixtures("at_once")
def test_token_is_sent_to_the_hub_and_not_to_the_storage_host(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish(hub, folder)
    with fake_hub.running() as other:
        other.repos = hub.repos
        hub.elsewhere = other.endpoint
        other.cuts["model.safetensors"] = [50_000]
        path = fetch_all(hub, tmp_path)
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert other.tokens == [None, None]
    assert other.ranges[-1] > 30_000  # the range goes there, too


class CancelAtSecondCheck(CancelToken):
    """A token that is cancelled at the second check after `looks` is set to 0."""

    __slots__ = ("looks",)

    def __init__(self) -> None:
        super().__init__()
        self.looks: int | None = None

    def checkpoint(self) -> None:
        if self.looks is not None:
            self.looks += 1
            if self.looks == 2:
                self.cancel()
        super().checkpoint()


def test_fetch_waits_for_another_process_and_can_be_cancelled(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    from huggingface_hub.utils import WeakFileLock

    publish(hub, folder)
    content = hub.repos[REPO]["model.safetensors"]
    token = CancelAtSecondCheck()

    def progress(done: int, total: int) -> None:
        if total > len(content) and token.looks is None:
            token.looks = 0

    locks = tmp_path / ".locks" / "models--org--name"
    locks.mkdir(parents=True)
    with (
        WeakFileLock(locks / f"{hashlib.sha256(content).hexdigest()}.lock"),
        pytest.raises(Cancelled),
    ):
        download(REPO, cancel=token, progress=progress, cache=tmp_path, endpoint=hub.endpoint)
    assert "model.safetensors" not in hub.fetched


KILLED = """
import pathlib, sys, time
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.hub.download import download

def progress(done, total):
    if done > 100_000:
        print("enough", flush=True)
        time.sleep(60)

cache, endpoint = sys.argv[1:]
token = CancelToken()
download("org/name", cancel=token, progress=progress, cache=pathlib.Path(cache), endpoint=endpoint)
"""


def test_partial_download_of_a_killed_kernel_is_resumed(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "cache"), hub.endpoint],
        stdout=subprocess.PIPE,
        text=True,
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "enough\n"
        killed.kill()
    path = download(
        REPO,
        cancel=CancelToken(),
        progress=ignored,
        cache=tmp_path / "cache",
        endpoint=hub.endpoint,
    )
    assert hub.ranges[-1] > 80_000
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]


def test_cancel_ends_a_load_at_once_while_the_connection_hangs(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, folder)
    here = partial(download, cache=tmp_path / "cache", endpoint=hub.endpoint)
    monkeypatch.setattr("mlx_magic.models.hub.download.download", here)
    session = scripted_session()
    hub.stall_after["model.safetensors"] = 100_000
    load = session.pool.submit_load(REPO)
    while load.progress.done < 50_000:
        assert not load.done
    assert load.progress.note == f"downloading {REPO}"
    load.cancel()
    assert load.future.result(5) is None  # the server still holds the connection
    del hub.stall_after["model.safetensors"]
    hub.go_on.set()
    info = session.pool.submit_load(REPO).future.result(60)
    assert info is not None
    assert hub.ranges[-1] >= 50_000 - CHUNK
    session.close()


def test_cancelled_download_stops_and_resumes_later(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    cache, token = tmp_path / "cache", CancelToken()
    seen: list[int] = []
    whole = len(hub.repos[REPO]["model.safetensors"])

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if total > whole and done > whole // 2:
            token.cancel()

    with pytest.raises(Cancelled):
        download(REPO, cancel=token, progress=progress, cache=cache, endpoint=hub.endpoint)
    assert seen[-1] < whole // 2 + 3 * CHUNK
    assert not list(cache.rglob("*.incomplete"))
    assert not list(cache.rglob("snapshots/*/model.safetensors"))
    assert isinstance(resolve(REPO, aliases={}, cache=cache), RemoteCheckpoint)

    hub.fetched.clear()
    hub.ranges.clear()
    again: list[tuple[int, int]] = []
    path = download(
        REPO,
        cancel=CancelToken(),
        progress=lambda done, total: again.append((done, total)),
        cache=cache,
        endpoint=hub.endpoint,
    )
    assert hub.fetched == ["model.safetensors"]
    assert hub.ranges[0] > whole // 3
    # Existing bytes are reported at once, and none count twice.
    assert again[0][0] == seen[-1]
    assert again[-1][0] == again[-1][1]
    assert again == sorted(again)
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize("ignores_ranges", [False, True])
@pytest.mark.usefixtures("at_once")
def test_broken_connection_is_resumed(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path, ignores_ranges: bool
) -> None:
    publish(hub, folder)
    hub.cuts["model.safetensors"] = [50_000, 100_000]
    hub.ignores_ranges = ignores_ranges
    seen: list[tuple[int, int]] = []
    path = download(
        REPO,
        cancel=CancelToken(),
        progress=lambda done, total: seen.append((done, total)),
        cache=tmp_path,
        endpoint=hub.endpoint,
    )
    assert hub.fetched.count("model.safetensors") == 3
    if not ignores_ranges:
        assert hub.ranges[-3:] == sorted(hub.ranges[-3:])
        assert hub.ranges[-1] > 100_000
    assert seen[-1][0] == seen[-1][1]
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]


@pytest.mark.usefixtures("at_once")
def test_repeatedly_broken_connection_is_an_error_and_keeps_the_partial_file(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    hub.cuts["model.safetensors"] = [50_000] + [0] * 6
    with pytest.raises(DownloadError, match=r"connection broke.*is not fetched twice") as caught:
        fetch_all(hub, tmp_path)
    assert "\n" not in str(caught.value)
    hub.ranges.clear()
    fetch_all(hub, tmp_path)
    assert hub.ranges[-1] > 30_000


def test_damaged_weights_are_deleted_and_fetched_again(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    hub.spoilt.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"^org/name: model\.safetensors arrived damaged"):
        fetch_all(hub, tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert isinstance(resolve(REPO, aliases={}, cache=tmp_path), RemoteCheckpoint)
    hub.spoilt.clear()
    path = fetch_all(hub, tmp_path)
    assert (path / "model.safetensors").read_bytes() == hub.repos[REPO]["model.safetensors"]


def test_damaged_small_file_is_deleted_before_weights_are_fetched(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    hub.spoilt.add("tokenizer.json")
    with pytest.raises(DownloadError, match=r"tokenizer\.json arrived damaged"):
        fetch_all(hub, tmp_path)
    assert "model.safetensors" not in hub.fetched
    hub.spoilt.clear()
    path = fetch_all(hub, tmp_path)
    assert (path / "tokenizer.json").read_bytes() == hub.repos[REPO]["tokenizer.json"]


def test_two_loads_of_the_same_model_fetch_it_once(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    outcomes: list[object] = []
    last: list[tuple[int, int]] = []

    def run() -> None:
        seen: list[tuple[int, int]] = []
        outcomes.append(
            download(
                REPO,
                cancel=CancelToken(),
                progress=lambda done, total: seen.append((done, total)),
                cache=tmp_path,
                endpoint=hub.endpoint,
            )
        )
        last.append(seen[-1])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 3
    assert hub.fetched.count("model.safetensors") == 1
    assert all(done == total for done, total in last)


def test_load_cancelled_before_start_sends_no_request(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        download(REPO, cancel=token, progress=ignored, cache=tmp_path, endpoint=hub.endpoint)
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (checkpoints.with_model_file, UntrustedCodeError),
        (checkpoints.with_auto_map, UntrustedCodeError),
        (
            lambda folder: checkpoints.update_json(
                folder / "config.json", {"model_type": "hologram9000"}
            ),
            UnsupportedModelError,
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            CheckpointError,
        ),
    ],
)
def test_no_weights_are_fetched_for_an_unusable_model(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path, spoil: object, error: type[Exception]
) -> None:
    assert callable(spoil)
    spoil(folder)
    publish(hub, folder)
    with pytest.raises(error, match=r"^org/name"):
        fetch_all(hub, tmp_path)
    assert "model.safetensors" not in hub.fetched
    assert "evil.py" not in hub.fetched
    assert "evil" not in sys.modules


def test_code_is_fetched_only_with_permission(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, checkpoints.with_model_file(folder))
    path = download(
        REPO,
        cancel=CancelToken(),
        progress=ignored,
        trust_remote_code=True,
        cache=tmp_path,
        endpoint=hub.endpoint,
    )
    assert (path / "evil.py").is_file()
    assert not checkpoints.mark_of(folder).exists()


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((404, "RepoNotFound"), "is not on the Hub, or is private"),
        ((401, "RepoNotFound"), "is not on the Hub, or is private"),
        ((401, "GatedRepo"), "is gated: accept its terms"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((403, None), r"refused by the Hub \(HTTP 403\)"),
        ((429, None), "HTTP 429, too many requests"),
        ((500, None), "the Hub has a problem"),
        ((503, None), "the Hub has a problem"),
        ((418, None), "HTTP 418"),
    ],
)
def test_hub_refusal_is_an_error_of_one_line(
    hub: fake_hub.FakeHub, tmp_path: Path, refusal: tuple[int, str | None], words: str
) -> None:
    hub.refusals[REPO] = refusal
    with pytest.raises(DownloadError, match=words) as caught:
        fetch_all(hub, tmp_path)
    assert caught.value.model == REPO
    assert str(caught.value).startswith(f"{REPO} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "GatedRepo"), "is gated: accept its terms"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((403, None), r"refused by the Hub \(HTTP 403\)"),
        ((429, None), "HTTP 429, too many requests"),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_refused_file_is_an_error_of_one_line(
    hub: fake_hub.FakeHub,
    folder: Path,
    tmp_path: Path,
    refusal: tuple[int, str | None],
    words: str,
) -> None:
    publish(hub, folder)
    hub.file_refusals[REPO] = refusal
    with pytest.raises(DownloadError, match=words):
        fetch_all(hub, tmp_path)


def test_existing_shards_count_as_progress(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    checkpoints.with_missing_shard(folder)
    checkpoints.write_safetensors(folder / "model-00002-of-00002.safetensors", WEIGHTS)
    publish(hub, folder)
    path = fetch_all(hub, tmp_path)
    lost = path / "model-00002-of-00002.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    hub.fetched.clear()
    seen: list[tuple[int, int]] = []
    download(
        REPO,
        cancel=CancelToken(),
        progress=lambda done, total: seen.append((done, total)),
        cache=tmp_path,
        endpoint=hub.endpoint,
    )
    assert hub.fetched == [lost.name]
    size = sum(file.stat().st_size for file in path.iterdir())
    assert seen[0] == (size - lost.stat().st_size, size)
    assert seen[-1] == (size, size)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README.md": b""}, "no config.json"),
        ({"config.json": b'{"model_type": "llama"}', "x.bin": b""}, "no safetensors weights"),
    ],
)
def test_repository_without_a_model_is_an_error_of_one_line(
    hub: fake_hub.FakeHub, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    hub.repos[REPO] = files
    with pytest.raises(DownloadError, match=words):
        fetch_all(hub, tmp_path)


def test_unreachable_hub_is_an_error_of_one_line(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    with fake_hub.running() as gone:
        endpoint = gone.endpoint
    with pytest.raises(DownloadError, match="out of reach") as caught:
        download(REPO, cancel=CancelToken(), progress=ignored, cache=tmp_path, endpoint=endpoint)
    assert "\n" not in str(caught.value)


def test_no_request_is_sent_offline(
    hub: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="unset HF_HUB_OFFLINE"):
        fetch_all(hub, tmp_path)


def test_full_disk_is_reported_before_weights_are_fetched(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, folder)
    monkeypatch.setattr(
        "mlx_magic.models.hub.download.shutil.disk_usage",
        lambda path: type("Usage", (), {"free": 1000})(),
    )
    with pytest.raises(DownloadError, match="make room"):
        fetch_all(hub, tmp_path)
    assert "model.safetensors" not in hub.fetched


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_disk_that_fills_up_is_an_error_and_the_partial_file_is_deleted(
    hub: fake_hub.FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(hub, folder)
    content = hub.repos[REPO]["model.safetensors"]
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(content).hexdigest()}.mlx-magic.part"
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="does not fit on the disk"):
        fetch_all(hub, tmp_path)
    assert not part.is_symlink()
    assert isinstance(resolve(REPO, aliases={}, cache=tmp_path), RemoteCheckpoint)
