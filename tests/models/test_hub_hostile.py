"""A Hub that changes or answers inconsistently: one complete commit, or one error line.

Every test compares the whole cache with what may be in it: what should not have been written, or
written elsewhere, is seen.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import CheckpointError, DownloadError, MlxMagicError, UntrustedCodeError
from mlx_magic.models.catalog import local_models, model_summary
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, resolve
from mlx_magic.models.hub.download import download
from mlx_magic.models.hub.resumable import PART
from tests import checkpoints, fake_hub

REPO = "org/name"
NEEDED = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    import huggingface_hub

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time.sleep", lambda seconds: None)
    huggingface_hub.close_session()
    with fake_hub.running() as server:
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def files(tmp_path: Path, hub: fake_hub.FakeHub) -> dict[str, bytes]:
    folder = checkpoints.good(tmp_path / "source")
    checkpoints.write_safetensors(folder / "model.safetensors", {"model.a": ("F32", (64, 64))})
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    hub.repos[REPO] = found
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "cache"


def fetched(hub: fake_hub.FakeHub, cache: Path, **options: Any) -> Path:
    return download(
        REPO,
        cancel=CancelToken(),
        progress=lambda done, total: None,
        cache=cache,
        endpoint=hub.endpoint,
        **options,
    )


def refused(hub: fake_hub.FakeHub, cache: Path, **options: Any) -> str:
    """Return the one line that a download is refused with; nothing lies outside the cache."""
    with pytest.raises(MlxMagicError) as caught:
        fetched(hub, cache, **options)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith("org/name")
    assert len(text) < 500
    assert [path.name for path in cache.parent.iterdir()] in ([], ["cache"])
    if cache.exists():
        assert {p.name for p in cache.iterdir()} <= {"models--org--name", ".locks"}
        # What is in the cache under a hash is what that hash says.
        for blob in cache.glob("models--org--name/blobs/*"):
            if blob.name.endswith(PART):
                continue  # of a file that was stopped with the one that failed
            content = blob.read_bytes()
            assert blob.name in (
                hashlib.sha256(content).hexdigest(),
                hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            )
    return text


@pytest.fixture(autouse=True)
def home(cache: Path) -> None:
    cache.parent.mkdir()


def changed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return another version of every file: a mixture shows itself by any of them."""
    config = {**json.loads(files["config.json"]), "changed": True}
    found = {name: content + b" " for name, content in files.items()}
    found["config.json"] = json.dumps(config).encode()
    found["model.safetensors"] = files["model.safetensors"][:-4] + b"\1\1\1\1"
    return found


@pytest.mark.parametrize(
    "moment",
    [
        ("HEAD", "config.json"),
        ("GET", "config.json"),
        ("GET", "tokenizer.json"),
        ("HEAD", "model.safetensors"),
        ("GET", "model.safetensors"),
    ],
)
def test_repository_that_changes_during_a_fetch_gives_the_listed_commit(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, moment: tuple[str, str]
) -> None:
    new = {**changed(files), "evil.py": b"1 / 0", "late.json": b"{}"}

    def before(what: str, name: str) -> None:
        if (what, name) == moment and hub.main == fake_hub.COMMIT:
            hub.push(REPO, new)

    hub.before = before
    folder = fetched(hub, cache)
    assert hub.main != fake_hub.COMMIT
    assert folder.name == fake_hub.COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: files[name] for name in NEEDED
    }
    assert [path.name for path in folder.parent.iterdir()] == [fake_hub.COMMIT]
    # Both lookups find the same commit offline.
    found = resolve(REPO, aliases={}, cache=cache, offline=True)
    assert isinstance(found, Checkpoint)
    assert found.path == folder
    assert REPO in local_models.names_on_disk(cache=cache)
    # And the next download brings the new one whole.
    hub.before = lambda what, name: None
    hub.push(REPO, changed(files))
    assert {path.name: path.read_bytes() for path in fetched(hub, cache).iterdir()} == {
        name: changed(files)[name] for name in NEEDED
    }


def test_commit_that_wants_code_downloads_neither_code_nor_weights(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    config = {**json.loads(files["config.json"]), "model_file": "evil.py"}
    evil = {**files, "config.json": json.dumps(config).encode(), "evil.py": b"1 / 0"}
    hub.push(REPO, evil)
    with pytest.raises(UntrustedCodeError):
        fetched(hub, cache)
    assert "model.safetensors" not in hub.fetched
    assert not list(cache.rglob("*.py"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"ETag": '"../../../../../evil"'}, None),
        ({"ETag": '"/etc/passwd"'}, None),
        ({"ETag": '"W/abc"'}, None),
        ({"ETag": '"' + "0" * 40 + '"'}, "another hash"),
        ({"ETag": '"' + "0" * 64 + '"'}, "another hash"),
        ({"X-Linked-ETag": '"' + "f" * 64 + '"'}, "another hash"),
        ({"X-Repo-Commit": "e" * 40}, "of another commit"),
        ({"X-Repo-Commit": "../../../../evil"}, "of another commit"),
        ({"X-Linked-Size": "-5"}, "without a size"),
        ({"X-Linked-Size": "9" * 15}, "is larger"),
        ({"X-Linked-Size": "7"}, "but the server sent more"),
    ],
)
def test_headers_that_contradict_the_listing_write_no_other_file(
    hub: fake_hub.FakeHub,
    files: dict[str, bytes],
    cache: Path,
    name: str,
    headers: dict[str, str],
    words: str | None,
) -> None:
    hub.headers[name] = headers
    if words is None:
        # The listing's own hash is enough: the file is checked against it.
        folder = fetched(hub, cache)
        assert (folder / name).read_bytes() == files[name]
        assert [path.name for path in cache.parent.iterdir()] == ["cache"]
        blobs = {blob.name for blob in cache.glob("models--*/blobs/*")}
        assert blobs == {fake_hub.etag(n, files[n]) for n in NEEDED}
    else:
        assert words in refused(hub, cache)


@pytest.mark.parametrize(
    "etag", ["../../x", "", "abc", "g" * 40, "0" * 41, "é" * 40, "0" * 39 + "/"]
)
def test_etag_must_be_a_hash_if_the_listing_has_none(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, etag: str
) -> None:
    listing: Any = fake_hub.info(REPO, fake_hub.COMMIT, files)
    for sibling in listing["siblings"]:
        sibling.pop("blobId")
        sibling.pop("lfs", None)
    hub.listing = json.dumps(listing).encode()
    assert (fetched(hub, cache.parent / "cache") / "config.json").is_file()
    hub.headers["model.safetensors"] = {"ETag": f'"{etag}"'.encode().decode("latin-1")}
    for path in cache.glob("**/model.safetensors"):
        path.unlink()
    assert "without a hash" in refused(hub, cache)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_download_stops_after_the_announced_size(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, name: str
) -> None:
    hub.extra[name] = bytes(30_000_000)
    assert f"{name} should have" in refused(hub, cache)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1_000_000
    hub.extra.clear()
    assert (fetched(hub, cache) / name).read_bytes() == files[name]


def sized(files: dict[str, bytes], **sizes: Any) -> bytes:
    """Return a listing that says something else of sizes; `config` stands for config.json."""
    listing: Any = fake_hub.info(REPO, fake_hub.COMMIT, files)
    for sibling in listing["siblings"]:
        key = sibling["rfilename"].partition(".")[0]
        if key in sizes:
            sibling["size"] = sizes[key]
    return json.dumps(listing).encode()


@pytest.mark.parametrize("size", [None, -1, -(10**30), 10**30, "12", 1.5, True, [], {}])
def test_invalid_size_in_the_listing_is_requested_again(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, size: object
) -> None:
    hub.listing = sized(files, config=size, model=size, tokenizer=size)
    folder = fetched(hub, cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: files[name] for name in NEEDED
    }


@pytest.mark.parametrize("said", [None, 3])
def test_file_larger_than_listed_is_not_fetched(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, said: int | None
) -> None:
    files["tokenizer_config.json"] = b" " * (9 * 2**20)
    hub.listing = sized(files, tokenizer_config=said)
    assert ("is larger" if said else "is too large") in refused(hub, cache)
    assert "tokenizer_config.json" not in hub.fetched


def listed(files: dict[str, bytes], *more: str, sha: object = fake_hub.COMMIT) -> bytes:
    listing: Any = fake_hub.info(REPO, fake_hub.COMMIT, files)
    listing["siblings"] += [{"rfilename": name, "size": 2, "blobId": "0" * 40} for name in more]
    return json.dumps({**listing, "sha": sha}).encode()


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "../../../../x.json",
        "/etc/x.json",
        "a/../../x.json",
        "./x.json",
        "a//x.json",
        "..\\x.json",
        "C:\\x.json",
        "x\0.json",
        "x\n.json",
        "x\x1b[2J.json",
        "x\u202e.json",
        "x" * 300 + ".json",
        "../model-2.safetensors",
        "CONFIG.json",
        "\uff43onfig.json",
        "config.json/x.json",
        "config.json",
        "a/x.json/../../../y.jinja",
    ],
)
def test_invalid_file_name_is_refused_before_any_weights_are_fetched(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, name: str
) -> None:
    hub.listing = listed(files, name)
    refused(hub, cache)
    assert not [found for found in hub.fetched if found not in NEEDED]
    assert "model.safetensors" not in hub.fetched
    assert not list(cache.rglob("model*.safetensors"))


@pytest.mark.parametrize(
    "name",
    [
        "a/b/x.json",
        ".git/x.json",
        "a/.b/c/x.jinja",
        "trainer_state.json",
        "evil.py",
        "a/evil.py",
        "../evil.py",
        "pytorch_model.bin",
        "../x.bin",
        "X.JSON",
    ],
)
def test_files_that_are_not_checked_are_not_fetched(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, name: str
) -> None:
    files[name] = b"{}"
    folder = fetched(hub, cache)
    assert name not in hub.fetched
    assert {path.name for path in folder.rglob("*")} == NEEDED


def test_chat_template_in_a_subfolder_is_fetched(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    files["additional_chat_templates/tool.jinja"] = b"{{ messages }}"
    files["2_Odd name, but possible [1].json"] = b"{}"
    folder = fetched(hub, cache)
    for name in list(files)[-2:]:
        assert (folder / name).read_bytes() == files[name]


@pytest.mark.parametrize("count", [2_001, 10_000])
def test_too_many_files_are_refused_before_any_fetch(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, count: int
) -> None:
    hub.listing = listed(files, *(f"x{at}.json" for at in range(count)))
    assert "are too large" in refused(hub, cache)
    assert hub.fetched == []


def test_files_with_too_large_total_size_are_refused_before_any_fetch(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    listing: Any = json.loads(listed(files, *(f"x{at}.model" for at in range(4))))
    for sibling in listing["siblings"][-4:]:
        sibling["size"] = 50_000_000
    hub.listing = json.dumps(listing).encode()
    assert "are too large" in refused(hub, cache)
    assert hub.fetched == []


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"<html><body>Sign in to the hotel's network</body></html>",
        b"\xff\xfe\x00",
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"sha": "x", "siblings": {}}',
        b'{"siblings": []}',
        b'{"sha": "%s", "siblings": [3]}' % (b"c" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": 3}]}' % (b"c" * 40),
        b'{"sha": "%s", "siblings": [{}]}' % (b"c" * 40),
        b'{"sha": 3, "siblings": []}',
        b'{"sha": "%s", "siblings": []}' % (b"c" * 39),
        b'{"sha": "../../../../evil", "siblings": []}',
        b'{"sha": "%s", "siblings": [%s]}' % (b"c" * 40, b"1" * 5_000),
    ],
    ids=lambda listing: repr(listing[:24]),
)
def test_response_that_is_not_a_listing_is_an_error_of_one_line(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, listing: bytes
) -> None:
    hub.listing = listing
    assert "not a listing of files" in refused(hub, cache)
    assert hub.fetched == []
    assert not cache.exists()
    with pytest.raises(DownloadError, match="not a listing of files"):
        model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)


@pytest.mark.parametrize("sha", [None, "", "main", "C0FFEE" + "0" * 34, "c" * 64, 3, ["c" * 40]])
def test_listing_without_a_commit_is_an_error_of_one_line(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, sha: object
) -> None:
    hub.listing = listed(files, sha=sha)
    assert "names no commit" in refused(hub, cache)
    assert hub.fetched == []


def peak() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def test_listing_of_100_megabytes_is_not_read_into_memory(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    hub.listing = b"[" + b"3," * 50_000_000
    before = peak()
    assert "it is larger than 8 MB" in refused(hub, cache)
    assert peak() - before < 60_000_000


def test_large_error_body_is_not_read_into_memory(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    hub.listing = bytes(100_000_000)
    hub.refusals[REPO] = (503, None)
    assert "HTTP 503" in refused(hub, cache)


@pytest.mark.parametrize(
    "revision", ["../../x", "/etc", "a/../../b", "", "a//b", "x\0", "x\x1b[2J", "a\\b", "x" * 300]
)
def test_invalid_revision_is_refused_before_any_request(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, revision: str
) -> None:
    asked: list[str] = []
    hub.before = lambda what, name: asked.append(what)
    assert "not a valid revision" in refused(hub, cache, revision=revision)
    assert asked == []


@pytest.mark.parametrize("revision", ["v1", "feature/x", "refs/pr/1", "commit"])
def test_revision_gives_its_own_files_and_main_is_unchanged(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, revision: str
) -> None:
    old = hub.main
    new = hub.push(REPO, changed(files))
    main = fetched(hub, cache)
    assert main.name == new
    if revision == "commit":
        revision = old
    hub.refs[revision] = old
    folder = fetched(hub, cache, revision=revision)
    assert folder.name == old
    assert (folder / "config.json").read_bytes() == files["config.json"]
    found = resolve(REPO, aliases={}, cache=cache, offline=True)
    assert isinstance(found, Checkpoint)
    assert found.path == main
    refs = cache / "models--org--name" / "refs"
    assert (refs / "main").read_text() == new
    assert revision == old or (refs / revision).read_text() == old


def test_response_for_another_commit_is_refused(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    hub.refs["a" * 40] = fake_hub.COMMIT
    assert "another commit" in refused(hub, cache, revision="a" * 40)


def test_old_commit_is_found_offline_after_a_failed_fetch_of_a_new_one(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    old = fetched(hub, cache)
    hub.push(REPO, changed(files))
    hub.spoilt.add("model.safetensors")
    assert "arrived damaged" in refused(hub, cache)
    found = resolve(REPO, aliases={}, cache=cache, offline=True)
    assert isinstance(found, Checkpoint)
    assert found.path == old


def test_wrong_file_in_the_cache_is_fetched_again(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path
) -> None:
    folder = fetched(hub, cache)
    (folder / "tokenizer.json").resolve().write_bytes(b"{ }")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to((folder / "config.json").readlink())
    hub.fetched.clear()
    assert fetched(hub, cache) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: files[name] for name in NEEDED
    }
    assert hub.fetched == ["tokenizer.json"]


def test_files_are_copied_if_symlinks_are_not_possible(
    hub: fake_hub.FakeHub, files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def symlink_to(path: Path, target: object, target_is_directory: bool = False) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    folder = fetched(hub, cache)
    assert not any(path.is_symlink() for path in folder.iterdir())
    hub.fetched.clear()
    assert fetched(hub, cache) == folder
    assert hub.fetched == []
    (folder / "tokenizer.json").write_bytes(b"{ }")
    fetched(hub, cache)
    assert hub.fetched == ["tokenizer.json"]
    assert (folder / "tokenizer.json").read_bytes() == files["tokenizer.json"]


def test_model_summary_refuses_the_same_hostile_repositories(
    hub: fake_hub.FakeHub, files: dict[str, bytes]
) -> None:
    hub.headers["config.json"] = {"X-Repo-Commit": "../../../../evil"}
    with pytest.raises(DownloadError, match="of another commit"):
        model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
    hub.headers.clear()
    files["config.json"] = b" " * (9 * 2**20)
    with pytest.raises(CheckpointError, match="too large"):
        model_summary.read(REPO, Names(), endpoint=hub.endpoint, float32=platform.wants_float32)
