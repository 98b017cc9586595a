"""Change listeners: which changes they get, when, on which threads, and their failures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.engine.running_tasks import ChangeListeners
from mlx_magic.errors import GenerationError
from mlx_magic.model_pool.model_info import Load
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "seer"))


class RecordingListener:
    """A watcher that keeps what a panel would show, each time that it is told."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._news = threading.Condition()
        self.seen: list[tuple[int, tuple[str, ...], int]] = []
        self.threads: set[str] = set()
        self.stop = session.watch(self)

    def __call__(self) -> None:
        pool = self._session.pool.models
        names = tuple(name for model in pool for name in model.names)
        users = sum(model.users for model in pool)
        with self._news:
            self.seen.append((len(self._session.running), names, users))
            self.threads.add(threading.current_thread().name)
            self._news.notify_all()

    def wait_for(self, told: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(told, timeout=10)

    @property
    def steps(self) -> list[tuple[int, tuple[str, ...], int]]:
        """What was seen, without repetitions."""
        return [now for before, now in zip([None, *self.seen], self.seen, strict=False)
                if now != before]  # fmt: skip


def question(model: str) -> GenerationRequest:
    return GenerationRequest(prompt="What is it?", model=model)


def test_listener_sees_each_step_of_a_first_request(session: Session, folder: str) -> None:
    looking = RecordingListener(session)
    session.start(question(folder)).future.result(10)
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder,), 0))

    # Its model is in use from the moment that it is in the pool.
    assert looking.steps == [
        (1, (), 0),
        (1, (folder,), 1),
        (1, (folder,), 0),
        (0, (folder,), 0),
    ]
    assert {"MainThread", "mlx-magic"} <= looking.threads


def test_listener_is_called_after_the_outcome_is_set(
    session: Session, script: ScriptedBackend, folder: str
) -> None:
    script.hold = "prefill"
    generation = session.start(question(folder))
    told: list[tuple[bool, bool]] = []
    ended = threading.Event()

    def look() -> None:
        told.append((generation.future.done(), generation in session.running))
        if generation.future.done():
            ended.set()

    session.watch(look)
    script.release()
    assert ended.wait(10)
    assert told[-1] == (True, False)
    assert (True, True) not in told


def test_listener_is_called_for_a_failure(
    session: Session, script: ScriptedBackend, folder: str
) -> None:
    script.error = ZeroDivisionError()
    looking = RecordingListener(session)
    with pytest.raises(GenerationError):
        session.start(question(folder)).future.result(10)
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder,), 0))


def test_listener_is_called_for_load_alias_and_unload(session: Session, folder: str) -> None:
    looking = RecordingListener(session)
    session.pool.submit_load(folder).future.result(10)
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder,), 0))
    session.pool.submit_load(folder, alias="seer").future.result(10)
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder, "seer"), 0))
    told = len(looking.seen)
    session.pool.unload("seer")
    looking.wait_for(lambda: len(looking.seen) >= told + 2)
    assert looking.seen[told:] == [(0, (), 0)] * 2, "once as it leaves, once as its memory is free"


def test_alias_exists_when_its_listener_is_called(session: Session, folder: str) -> None:
    known: list[bool] = []
    there = threading.Event()

    def look() -> None:
        known.append("seer" in session.aliases)
        if known[-1]:
            there.set()

    session.watch(look)
    session.pool.submit_load(folder, alias="seer").future.result(10)
    assert there.wait(10)
    assert session.aliases == {"seer": folder}
    assert known[0] is False


def test_listener_is_called_for_a_new_default_model(session: Session) -> None:
    told: list[str | None] = []
    session.watch(lambda: told.append(session.default_model))
    session.default_model = "seer"
    session.default_model = "seer"
    session.default_model = None
    assert told == ["seer", None]


def test_listener_is_not_called_for_tokens(
    session: Session, script: ScriptedBackend, folder: str
) -> None:
    script.hold = "decode"
    looking = RecordingListener(session)
    told_at: list[int] = []
    enough = threading.Event()

    def sink(chunk: GenerationChunk) -> None:
        if chunk.phase == "decode":
            told_at.append(len(looking.seen))
        if len(told_at) > 50:
            enough.set()

    generation = session.start(question(folder), sink=sink)
    assert enough.wait(10)
    generation.cancel()
    assert len(set(told_at)) == 1


def test_no_lock_is_held_while_a_listener_runs(session: Session, folder: str) -> None:
    stuck: list[str] = []

    def look_from_another_thread() -> None:
        def look() -> None:
            _ = session.pool.models, session.running, session.model_names
            _ = [work.progress for work in session.running]
            session.watch(lambda: None)()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join(5)
        if thread.is_alive():
            stuck.append(threading.current_thread().name)

    session.watch(look_from_another_thread)
    session.pool.submit_load(folder, alias="seer").future.result(10)
    session.start(question("seer")).future.result(10)
    session.pool.unload("seer")
    session.default_model = "seer"
    session.engine.call(lambda: None).result(10)
    assert not stuck


def test_listener_that_raises_is_logged_and_removed(
    session: Session, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def broken() -> None:
        calls.append("broken")
        raise ValueError("no panel here")

    session.watch(broken)
    looking = RecordingListener(session)
    with caplog.at_level(logging.ERROR):
        assert session.start(question(folder)).future.result(10).text == "It is a red circle."
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder,), 0))
    assert calls == ["broken"]
    assert "no panel here" in caplog.text


def test_unsubscribe_removes_only_that_listener(session: Session) -> None:
    told: list[str] = []
    stop = session.watch(lambda: told.append("first"))
    session.watch(lambda: told.append("second"))
    stop()
    stop()
    session.default_model = "seer"
    assert told == ["second"]


def test_one_callback_subscribed_twice_is_two_listeners() -> None:
    watchers, told = ChangeListeners(), []
    callback = lambda: told.append(1)  # noqa: E731
    stop = watchers.add(callback)
    watchers.add(callback)
    watchers.notify()
    stop()
    watchers.notify()
    assert len(told) == 3


def test_listener_can_unsubscribe_itself_and_others_during_a_call() -> None:
    watchers, told = ChangeListeners(), []

    def first() -> None:
        told.append("first")
        stop_first()
        stop_second()

    stop_first = watchers.add(first)
    stop_second = watchers.add(lambda: told.append("second"))
    watchers.add(lambda: told.append("third"))
    watchers.notify()
    watchers.notify()
    assert told == ["first", "third", "third"]


def test_changes_from_several_threads_are_all_reported() -> None:
    watchers = ChangeListeners()
    lock, told = threading.Lock(), [0]

    def count() -> None:
        with lock:
            told[0] += 1

    watchers.add(count)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(10)
        for _ in range(200):
            stop = watchers.add(lambda: None)
            watchers.notify()
            stop()

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(work) for _ in range(8)]:
            future.result(10)
    assert told[0] == 8 * 200
    assert len(watchers._callbacks) == 1


def test_requests_from_several_threads_end_with_no_running_tasks(
    session: Session, folder: str
) -> None:
    looking = RecordingListener(session)
    with ThreadPoolExecutor(8) as threads:
        asked = list(threads.map(lambda _: session.start(question(folder)), range(24)))
        for generation in asked:
            generation.future.result(10)
            assert generation not in session.running
    looking.wait_for(lambda: looking.seen[-1] == (0, (folder,), 0))
    assert len(looking.seen) >= 2 * 24


def test_running_tasks_describe_themselves(
    session: Session, script: ScriptedBackend, folder: str, tmp_path: Path
) -> None:
    """A panel tells loads from generations, and sees the load inside a first question."""
    script.hold = "loading"
    generation = session.start(question(folder))
    # Progress is looked at, not told.
    while (progress := generation.progress).note != "loading weights":
        assert not generation.done
    assert progress.phase == "loading"
    assert progress.total > 0
    other = str(checkpoints.good(tmp_path / "other"))
    session.pool.submit_load(other)

    loads = [work.name for work in session.running if isinstance(work, Load)]
    models = [work.request.model for work in session.running if isinstance(work, Generation)]
    assert (loads, models) == ([other], [folder])
    assert len(session.pool) == 0
    script.release()
    assert generation.future.result(10).timings.load > 0
