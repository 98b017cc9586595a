"""The journal: what is asked again and what is not, crashes, and files that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mlx_magic
from mlx_magic import default_session
from mlx_magic.data.journal import location, stored_results
from mlx_magic.data.journal.keys import answer_key, canonical, question_digest
from mlx_magic.data.journal.location import is_shared
from mlx_magic.data.journal.store import FileState, Journal, JournalError
from mlx_magic.data.schema import schema_of
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import Timings, Usage, VisionResult
from mlx_magic.options import OPTIONS, Settings
from mlx_magic.testing import ScriptedBackend, scripted_session
from tests import checkpoints

Draw = Callable[..., Path]
JOURNAL = Path(".mlx-magic") / "journal.sqlite"

# Two values for each option that affects an answer through the request.
VALUES: dict[str, tuple[Any, Any]] = {
    "system": ("Short.", "Long."),
    "max_tokens": (5, 6),
    "temperature": (0.0, 0.5),
    "top_p": (0.5, 0.6),
    "top_k": (3, 4),
    "min_p": (0.1, 0.2),
    "repetition_penalty": (1.1, 1.2),
    "seed": (1, 2),
    "stop": (("a",), ("a", "b")),
    "think": (True, False),
    "kv_bits": (4, 8),
    "format": ("text", "json"),
    "show": (True, False),
    "timeout": (5.0, 6.0),
    "max_pixels": (10, 20),
    "normalize": (True, False),
    "limit": (3, 4),
    "journal": ("a", "b"),
    "map": (True, False),
    "output": ("a", "b"),
    "schema": (schema_of("a: int"), schema_of("a: str")),
}
KEYED = {
    "system", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "seed", "stop", "think", "kv_bits", "schema",
}  # fmt: skip


def key(prompt: str = "What?", image: str = "i", model: str = "m", **options: Any) -> bytes:
    chosen = Settings(**options)
    return answer_key(question_digest(chosen.request(prompt), chosen, model), image)


@given(
    st.dictionaries(st.sampled_from(sorted(VALUES)), st.sampled_from([0, 1])),
    st.sampled_from(sorted(VALUES)),
)
@settings(max_examples=40)
def test_key_changes_exactly_with_the_options_that_affect_the_answer(
    chosen: dict[str, int], changed: str
) -> None:
    values = {name: VALUES[name][at] for name, at in chosen.items()}
    before = {**values, changed: VALUES[changed][0]}
    after = {**values, changed: VALUES[changed][1]}
    assert (key(**before) != key(**after)) == (changed in KEYED)
    assert key(**before) == key(**dict(reversed(before.items())))


def test_key_does_not_depend_on_how_a_value_is_written() -> None:
    assert key(temperature=0) == key(temperature=0.0) == key(temperature=np.float64(0))
    assert key(temperature=1, top_k=3) == key(temperature=1.0, top_k=np.int64(3))
    assert key(max_tokens=512) == key()


def test_every_option_is_tried_above() -> None:
    known = {option.name for option in OPTIONS}
    assert set(VALUES) <= known
    # An option that affects the answer must be part of the key, or of the image or the model.
    elsewhere = {"timeout", "max_pixels", "normalize", "output", "format"}
    marked = {o.name for o in OPTIONS if o.affects_answer and o.target in ("request", "sampling")}
    assert (marked & set(VALUES)) - elsewhere == KEYED


texts = st.text(max_size=8)


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
@settings(max_examples=40)
def test_keys_are_equal_only_for_equal_questions(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    keys = [key(f"?{prompt}", image, model) for prompt, image, model in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, -0.0]) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def exactly(value: Any) -> str:
    return repr(value)


@given(values, values)
def test_canonical_values_are_equal_only_for_equal_values(one: Any, other: Any) -> None:
    same = json.dumps(canonical(one)) == json.dumps(canonical(other))
    assert same == (exactly(one) == exactly(other))


@given(values, texts, st.floats(allow_nan=False))
def test_results_are_stored_and_restored(data: Any, text: str, seconds: float) -> None:
    result = VisionResult(
        text=text, model="m", finish_reason="stop", data={"!tuple": data, "x": (1, data)},
        usage=Usage(1, 2, 3, 4), timings=Timings(prefill=seconds, time_to_first_token=None),
        prompt="Q", format="text", seen=("1 x 1",), reasoning=text,
    )  # fmt: skip
    request = GenerationRequest(prompt="Q", model="m", format="text")
    again = stored_results.unpack(stored_results.pack(result), request)
    names = [name for name in VisionResult.__dataclass_fields__ if name != "images"]
    assert [getattr(again, name) for name in names] == [getattr(result, name) for name in names]


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "[]", '{"text": 3, "finish_reason": "stop"}', '{"finish_reason": "stop"}',
        '{"text": {"!object": ["os", "system", {}]}, "finish_reason": "stop"}',
        '{"text": "a", "finish_reason": "stop", "later": 1}',
        '{"text": {"!object": ["mlx_magic.engine.result", "Usage", {"x": 1}]}}',
    ],
)  # fmt: skip
def test_damaged_answers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        stored_results.unpack(text, GenerationRequest(prompt="Q"))


def test_journal_lies_beside_the_notebook_and_hides_from_git(
    script: ScriptedBackend, model: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Path("deeper") / "notes.ipynb"
    notebook.parent.mkdir()
    notebook.touch()
    mlx_magic.map("What?", draw(1), model)
    assert (JOURNAL.parent / ".gitignore").read_text() == "*\n"
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook.absolute()))
    mlx_magic.map("What?", draw(1), model)
    assert (notebook.parent / JOURNAL).is_file()
    mlx_magic.map("What?", draw(1), model, journal="mine.sqlite")
    assert Path("mine.sqlite").is_file()
    assert len(script.requests) == 3
    before = sorted(Path().rglob("*"))
    mlx_magic.map("Which?", draw(1), model, journal=False)
    assert sorted(Path().rglob("*")) == before


def test_only_what_changed_is_asked_again(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    folder = draw(6)

    def asked(**options: Any) -> int:
        before = len(script.requests)
        given: dict[str, Any] = {"prompt": "What?", "images": folder, "model": model, **options}
        result = mlx_magic.map(**given)
        assert [row.error for row in result] == [None] * len(result)
        count = len(script.requests) - before
        assert sum(row.reused for row in result) == len(result) - count
        return count

    assert asked() == 6
    assert asked() == 0
    assert asked(prompt="Which?") == 6
    assert asked(prompt={"a": "What?", "b": "Where?"}) == 6
    assert asked(temperature=0.7) == 6
    assert asked(timeout=60) == asked(format="json") == asked(max_pixels=10**6) == 0
    Image.new("RGB", (6, 4), "white").save(folder / "3.png")
    assert asked() == 1
    (folder / "4.png").rename(folder / "name.png")
    Image.new("RGB", (9, 9), "red").save(folder / "new.png")
    assert asked() == 1
    assert asked(max_pixels=12) == 7
    # The same images by other ways.
    assert asked(images=[Image.open(folder / "0.png")]) == 0
    # The model's weights, and its chat template.
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert asked() == 7
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert asked() == 7
    (model / "README.md").write_text("no part of the model")
    assert asked() == 0


def test_image_that_did_not_change_is_not_opened_again(
    script: ScriptedBackend, model: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw(5)
    for path in folder.iterdir():
        os.utime(path, (10**9, 10**9))
    first = mlx_magic.map("What?", folder, model)

    def refuse(*job: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("mlx_magic.data.mapping.openers.Openers._open", refuse)
    again = mlx_magic.map("What?", folder, model)
    assert [row.image.digest for row in again] == [row.image.digest for row in first]
    assert all(row.reused for row in again)


def test_file_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    state = FileState.of(path)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.remember(state, "v", "digest")
    # It may change again within the same tick of the clock.
    assert journal.digest(state, "v") is None
    os.utime(path, (10**9, 10**9))
    old = FileState.of(path)
    journal.remember(old, "v", "digest")
    assert journal.digest(old, "v") == "digest"
    assert journal.digest(old, "w") is None
    for other in (
        FileState(old.path, old.size + 1, old.mtime_ns, old.inode),
        FileState(old.path, old.size, old.mtime_ns + 1, old.inode),
        FileState(old.path, old.size, old.mtime_ns, old.inode + 1),
    ):
        assert journal.digest(other, "v") is None
    journal.close()


histories = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.sampled_from("QR")),
        st.tuples(st.just("crash"), st.integers(0, 6)),
        st.tuples(st.just("change"), st.integers(0, 5)),
        st.tuples(st.just("add"), st.integers(0, 5)),
    ),
    max_size=7,
)


@given(steps=histories)
@settings(max_examples=10)
def test_no_interleaving_of_crashes_and_runs_loses_or_doubles_a_row(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A crash leaves what the journal has then; a later run asks for the rest and no more."""
    folder = tmp_path_factory.mktemp("map")
    model = checkpoints.good(folder / "model")
    (folder / "images").mkdir()
    colors = list(range(4))
    script = ScriptedBackend("One two.")
    session = scripted_session(backend=script)
    before = default_session.replace_current(session)
    known: set[tuple[str, int]] = set()

    def run(prompt: str, crash_after: int | None = None) -> None:
        for at, color in enumerate(colors):
            Image.new("RGB", (4, 4), (color, 0, 0)).save(folder / "images" / f"{at}.png")
        asked_before = len(script.requests)

        journal = folder / "journal.sqlite"
        result = mlx_magic.map(prompt, folder / "images", model, journal=journal, wait=False)
        if crash_after is not None:
            for count, _ in enumerate(result, start=1):
                if count >= crash_after:
                    break
            result.cancel()
        result.wait()
        asked = [
            (request.prompt, request.images[0].pixels.tobytes()[0])
            for request in script.requests[asked_before:]
        ]
        wanted = [(prompt, color) for color in colors]
        assert set(asked) <= set(wanted) - known
        rows = list(result)
        assert len({row.index for row in rows}) == len(rows)
        if crash_after is None:
            assert [row.index for row in rows] == list(range(len(colors)))
            # Two equal images may be asked about at the same moment.
            assert set(asked) == set(wanted) - known
        stored = Journal(journal)
        known.update((prompt, colors[row.index]) for row in rows)
        counted = sum(entry.answers for entry in stored.entries())
        stored.close()
        assert counted >= len(known)
        if crash_after is None:
            known.update(wanted)

    try:
        new = 100
        for step, value in steps:
            if step == "run":
                run(value)
            elif step == "crash":
                run("Q", value)
            elif step == "change":
                colors[value % len(colors)] = new = new + 1
            else:
                colors.append(new := new + 1)
        run("Q")
        run("Q")
    finally:
        session.close()
        default_session.replace_current(before)


CHILD = """
import sys, time
from pathlib import Path
import mlx_magic
from mlx_magic import default_session
from mlx_magic.testing import ScriptedBackend, scripted_session

class Logged(list):
    def append(self, request):
        with open("asked.txt", "a") as file:
            file.write(f"{request.images[0].digest}\\n")
        super().append(request)
        time.sleep(0.002)  # a model takes its time

script = ScriptedBackend("One two.")
script.requests = Logged()
default_session.replace_current(scripted_session(backend=script))
result = mlx_magic.map("What?", "images", "model")
Path("done.txt").write_text(str(len(result)))
"""


def test_killed_process_loses_at_most_the_requests_in_flight(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    kills, count = (20, 200) if os.environ.get("MLX_MAGIC_EVERY") == "1" else (2, 60)
    draw(count)
    env = {**os.environ, "PYTHONPATH": str(Path(mlx_magic.__file__).parents[1])}
    asked = Path("asked.txt")
    killed = 0
    for turn in range(kills + 1):
        child = subprocess.Popen([sys.executable, "-c", CHILD], env=env)
        # The next kill comes once so many more requests were begun.
        target = (turn + 1) * count // (kills + 1)
        last = turn == kills
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            begun = len(asked.read_text().splitlines()) if asked.exists() else 0
            if not last and begun >= target:
                child.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
        child.wait(60)
    assert Path("done.txt").read_text() == str(count)
    asks = asked.read_text().splitlines()
    assert len(set(asks)) == count
    # At most those in flight at each kill were asked again.
    from mlx_magic.data.mapping.run import AT_ONCE

    assert len(asks) - count <= killed * AT_ONCE


def test_two_maps_may_use_one_journal(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    results = [mlx_magic.map(prompt, draw(20), model, wait=False) for prompt in ("A", "B")]
    assert [len(result.wait()) for result in results] == [20, 20]
    assert all(result.notes == [] for result in results)
    journal = Journal(JOURNAL)
    assert sorted((entry.prompt, entry.answers) for entry in journal.entries()) == [
        ("A", 20),
        ("B", 20),
    ]
    journal.close()


def broken_journals() -> Sequence[tuple[str, Callable[[Path], object]]]:
    def other(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (a)")
        database.close()

    def newer(path: Path) -> None:
        Journal(path).close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version=99")
        database.close()

    return (
        ("is no journal, or is damaged", lambda path: path.write_bytes(b"text " * 2_000)),
        ("is another program's database", other),
        ("was written by a newer mlx-magic (version 99", newer),
        ("cannot be used", lambda path: path.mkdir()),
    )


@pytest.mark.parametrize(("message", "spoil"), broken_journals(), ids=lambda case: str(case)[:20])
def test_file_that_is_no_journal_is_left_alone(
    message: str,
    spoil: Callable[[Path], object],
    script: ScriptedBackend,
    model: Path,
    draw: Draw,
) -> None:
    JOURNAL.parent.mkdir()
    spoil(JOURNAL)
    before = JOURNAL.read_bytes() if JOURNAL.is_file() else b""
    with pytest.raises(JournalError) as caught:
        mlx_magic.map("What?", draw(2), model, journal=JOURNAL)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="Nothing is stored for a later run: "):
        result = mlx_magic.map("What?", draw(2), model)
    assert [row.error for row in result] == [None, None]
    assert len(result.notes) == 1
    assert (JOURNAL.read_bytes() if JOURNAL.is_file() else b"") == before


def test_folder_that_cannot_be_written_to_is_one_line(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    Path(".mlx-magic").write_text("a file in its place")
    with pytest.warns(UserWarning, match="Nothing is stored for a later run"):
        assert len(mlx_magic.map("What?", draw(2), model)) == 2


def test_full_disk_in_the_middle_keeps_the_rows(
    script: ScriptedBackend, model: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal.__init__

    def small(self: Journal, path: Path) -> None:
        original(self, path)
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        # SQLite reports a limit of pages as a full disk.
        self._db.execute(f"PRAGMA max_page_count={pages + 2}")

    monkeypatch.setattr(Journal, "__init__", small)
    with pytest.warns(UserWarning, match="From here on nothing is stored .* the disk is full"):
        result = mlx_magic.map("What?", draw(60), model)
    assert len(result) == 60
    assert result.frame["error"].isna().all()


def test_journal_lists_exports_and_forgets(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    mlx_magic.map({"a": "What?", "b": "Where?"}, draw(2), model)
    mlx_magic.map("Which?", draw(3), model)
    mlx_magic.map("Which?", draw(3), model)
    journal = Journal(JOURNAL)
    which, what = journal.entries()
    assert (what.prompt, what.answers, what.images) == ("a: What?\nb: Where?", 4, "2 images")
    assert (which.prompt, which.answers) == ("Which?", 3)
    assert journal.export(Path("all.jsonl")) == 7
    assert journal.export(Path("one.jsonl"), what.id) == 4
    lines = [json.loads(line) for line in Path("one.jsonl").read_text().splitlines()]
    assert {line["question"] for line in lines} == {"a", "b"}
    assert {line["result"]["text"] for line in lines} == {"One two."}
    with pytest.raises(JournalError, match="has no map 99"):
        journal.forget(99)
    assert journal.forget(what.id) == 4
    assert [entry.id for entry in journal.entries()] == [which.id]
    assert journal.forget(None) == 3
    assert journal.entries() == []
    journal.close()


def test_shared_folders_have_no_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /net nfs4 rw 0 0\nz /net/my\\040zip zfs a"
    )
    assert location._file_system(Path("/net/a/b"), str(mounts)) == "nfs4"
    assert location._file_system(Path("/net/my zip/b"), str(mounts)) == "zfs"
    assert location._file_system(Path("/nets"), str(mounts)) == "ext4"
    assert is_shared(Path("/home/me/Dropbox/notes"))
    assert is_shared(Path("/home/me/OneDrive - Company/notes"))
    assert not is_shared(tmp_path)
    for shared, mode in ((False, "wal"), (True, "delete")):
        monkeypatch.setattr("mlx_magic.data.journal.store.is_shared", lambda path, s=shared: s)
        journal = Journal(tmp_path / f"{mode}.sqlite")
        assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == mode
        journal.close()


def test_many_maps_may_make_one_journal_at_once(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def opened(path: Path, together: threading.Barrier) -> None:
        together.wait(10)
        try:
            Journal(path).close()
        except Exception as error:
            failed.append(error)

    for at in range(40):
        together = threading.Barrier(6)
        path = tmp_path / f"{at}.sqlite"
        threads = [threading.Thread(target=opened, args=(path, together)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
