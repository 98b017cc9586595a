"""The list of local models: its order, and problems of unusable ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import mlx_magic
from mlx_magic.backends.device import platform
from mlx_magic.models.catalog import local_models
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.catalog.local_models import (
    PATIENCE,
    ModelOnDisk,
    names_on_disk,
)
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, RemoteCheckpoint, resolve
from mlx_magic.testing import scripted_session
from tests import checkpoints, fake_hub
from tests.hostile import corpus

models_on_disk = partial(local_models.models_on_disk, float32=platform.wants_float32)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def snapshot(cache: Path, repo_id: str) -> Path:
    """Lay out a repository as the Hub's client does; return where its files go."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(fake_hub.COMMIT)
    folder = root / "snapshots" / fake_hub.COMMIT
    folder.mkdir(parents=True)
    return folder


def only(models: list[ModelOnDisk], name: str) -> ModelOnDisk:
    [found] = [model for model in models if model.name == name]
    return found


def names(models: list[ModelOnDisk]) -> list[str]:
    return [model.name for model in models]


def test_bundled_model_is_listed_if_nothing_else_exists(cache: Path) -> None:
    [demo] = models_on_disk({}, cache=cache / "nowhere")
    assert (demo.name, demo.path, demo.kind) == ("demo", mlx_magic.demo_model(), "vision")
    assert (demo.model_type, demo.problem) == ("smolvlm", "")
    assert demo.nbytes > 1_000_000


def test_list_order_is_bundled_model_aliases_cache(cache: Path, tmp_path: Path) -> None:
    for repo_id in ("zoo/cat", "Zoo/ant", "a/dog"):
        checkpoints.good(snapshot(cache, repo_id))
    aliases = {
        "y": str(checkpoints.good_text(tmp_path / "one")),
        "b": str(checkpoints.good(tmp_path / "two")),
    }
    found = models_on_disk(aliases, cache=cache)
    assert names(found) == ["demo", "b", "y", "Zoo/ant", "a/dog", "zoo/cat"]
    assert [model.problem for model in found] == [""] * 6
    assert [model.kind for model in found[1:4]] == ["vision", "text", "vision"]
    assert found[1].path == tmp_path / "two"


@pytest.mark.parametrize(("on_gpu", "needed"), [(True, 96), (False, 128)])
def test_model_description_comes_from_its_files(
    cache: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, needed: int
) -> None:
    # Halves are floats in memory where MLX runs on the CPU.
    monkeypatch.setattr(platform, "is_gpu", lambda: on_gpu)
    config = {**checkpoints.TEXT_CONFIG, "quantization": {"bits": 4, "group_size": 64}}
    folder = checkpoints.good(snapshot(cache, "org/small"), config)
    assert only(models_on_disk({}, cache=cache), "org/small") == ModelOnDisk(
        "org/small", folder, "text", "llama", "4-bit, group 64", nbytes=96, needed=needed
    )


@pytest.mark.parametrize("broken", sorted(set(checkpoints.BROKEN) - {"config.json"}))
def test_unusable_models_are_listed_with_their_problem(cache: Path, broken: str) -> None:
    folder = checkpoints.BROKEN[broken](snapshot(cache, "org/broken"))
    found = only(models_on_disk({}, cache=cache), "org/broken")
    assert broken in found.problem
    assert "\n" not in found.problem
    assert not found.problem.startswith("org/broken")
    assert (found.path, found.kind) == (folder, "vision")
    assert found.model_type in ("smolvlm", "hologram9000")


def test_interrupted_download_is_not_listed_as_broken(cache: Path) -> None:
    checkpoints.with_missing_shard(snapshot(cache, "org/shards"))
    folder = checkpoints.without_weights(snapshot(cache, "org/single"))
    part = folder.parent.parent / "blobs" / "abc.mlx-magic.part"
    part.parent.mkdir()
    part.write_bytes(b"...")
    # This one is complete but unusable for another reason; the rest is of another revision.
    whole = checkpoints.with_model_file(checkpoints.good(snapshot(cache, "org/evil")))
    (whole.parent.parent / "blobs").mkdir()
    (whole.parent.parent / "blobs" / "def.mlx-magic.part").write_bytes(b"...")
    # Nobody has begun to fetch weights of this one.
    checkpoints.without_weights(snapshot(cache, "org/config-only"))
    found = [model.name for model in models_on_disk({}, cache=cache) if model.partly]
    assert found == ["org/shards", "org/single"]
    # Loading them gives the same error.
    for name in ("org/shards", "org/single"):
        assert isinstance(resolve(name, aliases={}, cache=cache), RemoteCheckpoint)


def test_damaged_config_is_a_problem(cache: Path) -> None:
    checkpoints.good(snapshot(cache, "org/name")).joinpath("config.json").write_text("{")
    found = only(models_on_disk({}, cache=cache), "org/name")
    assert "config.json is damaged" in found.problem
    assert (found.kind, found.model_type, found.nbytes) == ("", "", 0)


@pytest.mark.parametrize("ask", [checkpoints.with_model_file, checkpoints.with_auto_map])
def test_model_with_remote_code_is_listed_without_running_it(
    cache: Path, ask: Callable[[Path], Path]
) -> None:
    folder = ask(checkpoints.good(snapshot(cache, "org/evil")))
    found = only(models_on_disk({}, cache=cache), "org/evil")
    assert found.problem.startswith("wants to run its own code")
    assert "\n" not in found.problem
    assert (found.kind, found.nbytes) == ("vision", 96)
    assert not checkpoints.mark_of(folder).exists()


def test_repositories_without_a_model_are_not_listed(cache: Path) -> None:
    checkpoints.without_config(snapshot(cache, "org/tokenizer-only"))
    snapshot(cache, "org/empty")
    (cache / "models--org--never-begun").mkdir()
    (cache / "datasets--org--images" / "snapshots").mkdir(parents=True)
    (cache / ".locks" / "models--org--locked").mkdir(parents=True)
    (cache / "version.txt").write_text("1")
    # No name that a person could give: no organization, two double dashes, odd characters.
    for name in ("gpt2", "a--b--c", "a--..", "a b--c", "--x"):
        checkpoints.good(snapshot(cache, name))
    assert names(models_on_disk({}, cache=cache)) == ["demo"]


def test_only_the_main_snapshot_counts(cache: Path) -> None:
    folder = checkpoints.good(snapshot(cache, "org/name"))
    older = folder.parent / ("0" * 40)
    checkpoints.without_weights(older)
    [_, found] = models_on_disk({}, cache=cache)
    assert (found.path, found.problem) == (folder, "")


def test_files_can_be_symlinks_to_blobs(cache: Path) -> None:
    folder = snapshot(cache, "org/name")
    blobs = folder.parents[1] / "blobs"
    checkpoints.good(blobs)
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(blob)
    assert only(models_on_disk({}, cache=cache), "org/name").problem == ""
    (blobs / "model.safetensors").unlink()
    found = only(models_on_disk({}, cache=cache), "org/name")
    assert "model.safetensors cannot be read" in found.problem


def test_an_alias_of_a_repository_in_the_cache_is_listed_once(cache: Path, tmp_path: Path) -> None:
    folder = checkpoints.good(snapshot(cache, "org/name"))
    assert names(models_on_disk({"n": str(folder)}, cache=cache)) == ["demo", "n"]
    # An alias for an id says nothing about the disk: the repository does.
    assert names(models_on_disk({"n": "org/name"}, cache=cache)) == ["demo", "org/name"]


def test_alias_of_a_missing_folder_is_a_problem(cache: Path, tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "moved")
    shutil.rmtree(folder)
    found = only(models_on_disk({"m": str(folder)}, cache=cache), "m")
    assert "has no config.json" in found.problem


def test_unreadable_model_is_a_problem_only_of_itself(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_magic.models.checkpoints import checkpoint

    inspect = checkpoint.inspect

    def refusing(folder: Path, name: str, **how: bool) -> checkpoint.Checkpoint:
        if name == "org/secret":
            raise PermissionError(13, "Permission denied")
        return inspect(folder, name, **how)

    for repo_id in ("org/open", "org/secret"):
        checkpoints.good(snapshot(cache, repo_id))
    monkeypatch.setattr(checkpoint, "inspect", refusing)
    found = models_on_disk({}, cache=cache)
    assert only(found, "org/open").problem == ""
    assert only(found, "org/secret").problem == "its folder cannot be read (Permission denied)"


def test_models_folders_are_searched_two_levels_deep(cache: Path, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    checkpoints.good(mine / "seer")
    checkpoints.good_text(mine / "org" / "reader")
    checkpoints.good(mine / "a" / "b" / "too-deep")
    checkpoints.good_text(other / "seer")  # the first folder's hides it
    checkpoints.good(snapshot(cache, "org/reader"))
    folders = [mine, other, tmp_path / "nowhere"]
    found = models_on_disk({}, folders=folders, cache=cache)
    assert names(found) == ["demo", "org/reader", "seer", "org/reader"]
    assert [model.kind for model in found[1:]] == ["text", "vision", "vision"]
    assert names_on_disk(folders, cache=cache) == ["org/reader", "seer", "org/reader"]


def test_a_model_of_a_folder_that_an_alias_hides_is_listed_by_its_path(
    cache: Path, tmp_path: Path
) -> None:
    hidden = checkpoints.good(tmp_path / "mine" / "seer")
    aliases = {"seer": str(checkpoints.good_text(tmp_path / "another"))}
    found = models_on_disk(aliases, folders=[tmp_path / "mine"], cache=cache)
    assert names(found) == ["demo", "seer", str(hidden)]
    aliases = {"s": str(hidden)}
    found = models_on_disk(aliases, folders=[tmp_path / "mine"], cache=cache)
    assert names(found) == ["demo", "s"]


def test_session_list_includes_its_aliases(tmp_path: Path) -> None:
    session = scripted_session()
    folder = str(checkpoints.good(tmp_path / "seer"))
    session.pool.submit_load(folder, alias="s").future.result(10)
    found = only(session.on_disk(), "s")
    # As the pool has it, so that a list can tell that they are the same.
    assert str(found.path) == session.pool["s"].path
    session.close()


def test_listing_imports_no_model_library(cache: Path, tmp_path: Path) -> None:
    checkpoints.good(snapshot(cache, "org/name"))
    code = (
        "import json, pathlib, sys\n"
        "from mlx_magic.models.catalog.local_models import models_on_disk\n"
        f"found = models_on_disk({{}}, float32=bool, cache=pathlib.Path({str(cache)!r}))\n"
        "heavy = {'mlx', 'mlx_vlm', 'mlx_lm', 'transformers', 'numpy', 'PIL'}\n"
        "print(json.dumps([len(found), sorted(heavy & {m.split('.')[0] for m in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [2, []]


ODD_NAMES = ["a\nb", "\x1b[2J\x1b]0;x\x07gone", "\u202eevil", "two  spaces", " edge ", "x" * 200]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folder_is_loaded_by_its_listed_name(tmp_path: Path, cache: Path, name: str) -> None:
    checkpoints.good(tmp_path / "models" / name)
    folders = [tmp_path / "models"]
    [_, listed] = models_on_disk({}, folders=folders, cache=cache)
    assert names_on_disk(folders, cache=cache) == [listed.name]
    known = Names()
    known.folders = tuple(folders)
    found = resolve(listed.name, aliases=known.known(listed.name), cache=cache)
    assert isinstance(found, Checkpoint)
    assert found.path == tmp_path / "models" / name


def test_problem_of_an_oddly_named_model_is_one_line_without_its_name(
    tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "models" / "a\n\x1b[31mb"
    checkpoints.good(folder)
    (folder / "tokenizer.json").unlink()
    [_, listed] = models_on_disk({}, folders=[folder.parent], cache=cache)
    assert listed.problem.isprintable()
    assert "has no tokenizer" in listed.problem
    assert not listed.problem.startswith("a")


def test_listing_stops_at_its_time_limit(tmp_path: Path, cache: Path) -> None:
    for i in range(5):
        checkpoints.good(tmp_path / "models" / f"m{i}")
    ticks = iter([0.0, 0.1, 0.2, *[PATIENCE] * 10])
    found = models_on_disk(
        {}, folders=[tmp_path / "models"], cache=cache, clock=lambda: next(ticks)
    )
    assert names(found) == ["demo", "m0", "m1", "m2", "m3", "m4"]
    assert [bool(model.kind) for model in found] == [True, True, True, False, False, False]
    assert not any(model.problem for model in found)  # not inspected does not mean unusable


def test_slow_models_are_listed_without_details(tmp_path: Path, cache: Path) -> None:
    folder = checkpoints.good(tmp_path / "models" / "m")
    checkpoints.write_safetensors(
        folder / "model.safetensors", {f"t{i}": ("F32", (1,)) for i in range(50_000)}
    )
    [_, listed] = models_on_disk({}, folders=[folder.parent], cache=cache)
    assert (listed.name, listed.problem, listed.kind) == ("m", "", "")
    assert isinstance(resolve(str(folder), aliases={}, cache=cache), Checkpoint)


def test_listing_many_hostile_models_is_quick(tmp_path: Path, cache: Path) -> None:
    """In seconds of work, which a busy machine does not change much."""
    spoils = [case for name, case in sorted(corpus.TEXT.items()) if "30_MB" not in name]
    quick = [s for s in spoils if s.__name__ not in SLOW_TO_MAKE]
    for i in range(200):
        folder = checkpoints.good_text(tmp_path / "models" / f"{i:03}" / "m")
        checkpoints.write_json(folder / "tokenizer.json", {"added_tokens": [], "model": {}})
        quick[i % len(quick)](folder)
    began = time.process_time()
    found = models_on_disk({}, folders=[tmp_path / "models"], cache=cache)
    assert time.process_time() - began < 4 * PATIENCE
    assert len(found) >= 190
    assert all(model.problem.isprintable() for model in found)


SLOW_TO_MAKE = {"header_million", "header_many", "merges_huge", "tokenizer_adds_100000"}
