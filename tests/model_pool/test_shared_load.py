"""Shared loads: progress, failure and end for all waiting requests; fairness to others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_magic import default_session
from mlx_magic.backends.base import LoadProgress
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.engine import OnError, Steps
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, VisionResult
from mlx_magic.engine.task import Task
from mlx_magic.errors import CheckpointError, EngineError, GenerationError, MemoryBudgetError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend, ScriptedModel, scripted_session
from tests import checkpoints

SLICES = 6

_submitted: dict[Session, list[Any]] = {}


class SlowBackend(ScriptedBackend):
    """Loads in several slices, and keeps count of them."""

    def __init__(self, pieces: str = "a b c d e f g h") -> None:
        super().__init__(pieces)
        self.log: list[str] = []
        self.begun = self.dropped = 0
        self.fails: Exception | None = None

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, ScriptedModel]:
        self.begun += 1
        ended = False
        try:
            for index in range(SLICES):
                cancel.checkpoint()
                self.log.append(f"load {checkpoint.path.name}")
                progress(index + 1, SLICES, "loading weights")
                yield
            if self.fails is not None:
                raise self.fails
            ended = True
        finally:
            self.dropped += not ended
        self.loads += 1
        return ScriptedModel(self, checkpoint.weight_bytes)


@pytest.fixture
def script() -> SlowBackend:
    return SlowBackend()


@pytest.fixture
def session(script: SlowBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session whose engine is stepped by hand."""
    session = scripted_session(backend=script, threaded=False)
    came = _submitted[session] = []
    submit = session.engine.submit

    def noted(steps: Steps, on_error: OnError, *, urgent: Callable[[], bool] | None = None) -> None:
        submit(steps, on_error, urgent=urgent)
        came.append(on_error.__self__)  # type: ignore[attr-defined]

    monkeypatch.setattr(session.engine, "submit", noted)
    yield session
    session.close()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "seer"))


def question(model: str) -> GenerationRequest:
    return GenerationRequest(prompt="What is it?", model=model)


def prepared(session: Session, works: list[Any]) -> list[Any]:
    """Wait until these tasks were submitted, without stepping the engine."""
    while waiting := [work for work in works if work not in _submitted[session]]:
        for work in waiting:
            # Raises errors of the preparation here.
            assert not work.done or work.future.result(1) is None
    return works


def run(session: Session, until: Callable[[], bool] | None = None) -> None:
    while not (until is not None and until()) and session.engine.step():
        pass


def ask(session: Session, folder: str, count: int) -> list[Any]:
    return prepared(session, [session.start(question(folder)) for _ in range(count)])


def outcome(work: Task[Any]) -> VisionResult:
    result = work.future.result(0)
    assert isinstance(result, VisionResult)
    return result


def test_ten_requests_share_one_load_and_each_sees_its_progress(
    session: Session, script: SlowBackend, folder: str
) -> None:
    asked = ask(session, folder, 10)
    seen: list[set[tuple[int, int]]] = [set() for _ in asked]
    while script.loads == 0:
        assert session.engine.step()
        for mine, work in zip(seen, asked, strict=True):
            if work.progress.note == "loading weights":
                mine.add((work.progress.done, work.progress.total))
    assert all(mine == {(done, SLICES) for done in range(1, SLICES + 1)} for mine in seen)
    run(session)

    assert (script.begun, script.loads) == (1, 1)
    assert {outcome(work).text for work in asked} == {"a b c d e f g h"}
    assert [model.users for model in session.pool] == [0]
    assert script.log == ["load seer"] * SLICES


def test_explicit_load_and_request_share_a_load(
    session: Session, script: SlowBackend, folder: str
) -> None:
    works = prepared(
        session, [session.pool.submit_load(folder, alias="seer"), session.start(question(folder))]
    )
    run(session)
    assert script.begun == 1
    assert works[0].future.result(0).users in (0, 1)
    assert set(session.pool.models[0].names) == {"seer", folder}
    assert outcome(works[1]).text


def test_failed_load_fails_all_its_requests_and_the_next_one_retries(
    session: Session, script: SlowBackend, folder: str
) -> None:
    script.fails = RuntimeError("no room for weights")
    asked = ask(session, folder, 10)
    run(session)

    errors = [work.future.exception(0) for work in asked]
    assert {type(error) for error in errors} == {CheckpointError}
    assert len({str(error) for error in errors}) == 1
    assert len({id(error) for error in errors}) == 10, "each has its own frames"
    assert all(error.model == folder for error in errors)
    assert all(error.__cause__ is script.fails for error in errors)
    assert script.begun == 1
    script.fails = None
    [again] = ask(session, folder, 1)
    run(session)
    assert outcome(again).text
    assert (script.begun, script.loads) == (2, 1)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_shared_load_continues_if_one_request_is_cancelled(
    session: Session, script: SlowBackend, folder: str, who: int
) -> None:
    asked = ask(session, folder, 3)
    run(session, lambda: len(script.log) == 2)
    asked[who].cancel()
    run(session)

    assert (script.begun, script.dropped, script.loads) == (1, 0, 1)
    reasons = [outcome(work).finish_reason for work in asked]
    assert reasons == ["cancelled" if at == who else "stop" for at in range(3)]
    assert session.pool.models[0].names == (folder,)


def test_shared_load_is_dropped_if_all_requests_are_cancelled(
    session: Session, script: SlowBackend, folder: str
) -> None:
    asked = ask(session, folder, 3)
    run(session, lambda: len(script.log) == 2)
    assert session.cancel() == 3
    [late] = ask(session, folder, 1)
    run(session, lambda: script.dropped == 1)
    assert len(script.log) <= 3
    assert script.loads == 0
    assert len(session.pool) == 0
    run(session)
    assert {outcome(work).finish_reason for work in asked} == {"cancelled"}
    assert outcome(late).text
    assert script.begun == 2


def test_shared_load_continues_for_a_request_that_joined_late(
    session: Session, script: SlowBackend, folder: str
) -> None:
    [first] = ask(session, folder, 1)
    run(session, lambda: len(script.log) == 2)
    [late] = ask(session, folder, 1)
    run(session, lambda: late.progress.note == "loading weights")
    first.cancel()
    run(session)
    assert outcome(late).text
    assert script.begun == 1


def test_load_that_ends_after_its_last_request_was_cancelled_is_not_kept(
    session: Session, script: SlowBackend, folder: str
) -> None:
    [asked] = ask(session, folder, 1)
    run(session, lambda: len(script.log) == SLICES)
    asked.cancel()
    run(session)
    assert len(session.pool) == 0
    assert script.loads == script.closed


def test_model_cannot_be_unloaded_before_waiting_requests_have_leased_it(
    session: Session, script: SlowBackend, folder: str
) -> None:
    load, asked = session.pool.submit_load(folder), session.start(question(folder))
    prepared(session, [load, asked])
    refused = 0
    while not asked.done:
        session.engine.step()
        if folder in session.pool and not asked.done:
            refused += 1
            assert session.pool[folder].users > 0
    assert refused > 0
    assert outcome(asked).text
    assert session.pool[folder].users == 0


def test_loads_in_progress_count_toward_the_budget(
    session: Session, script: SlowBackend, tmp_path: Path
) -> None:
    folders = [str(checkpoints.good(tmp_path / name)) for name in ("first", "second")]
    size = 96
    session.pool.budget = 2 * size - 1
    first, second = (session.pool.submit_load(folder) for folder in folders)
    prepared(session, [first, second])
    run(session)
    outcomes = [first.future.exception(0), second.future.exception(0)]
    [refused] = [error for error in outcomes if error is not None]
    assert isinstance(refused, MemoryBudgetError)
    assert (refused.needed_bytes, refused.limit_bytes) == (size, 2 * size - 1)
    assert script.begun == 1
    # What was loaded counts once: the same again fits beside it when there is room.
    session.pool.budget = 2 * size
    again = prepared(session, [session.pool.submit_load(folder) for folder in folders])
    run(session)
    assert all(work.future.result(0) is not None for work in again)


def test_failed_load_does_not_count_toward_the_budget(
    session: Session, script: SlowBackend, tmp_path: Path
) -> None:
    session.pool.budget = 100
    script.fails = ValueError("broken")
    prepared(session, [session.pool.submit_load(str(checkpoints.good(tmp_path / "first")))])
    run(session)
    script.fails = None
    [load] = prepared(
        session, [session.pool.submit_load(str(checkpoints.good(tmp_path / "second")))]
    )
    run(session)
    assert load.future.result(0) is not None


def test_request_joins_a_load_with_remote_code_permission(
    session: Session, script: SlowBackend, tmp_path: Path
) -> None:
    folder = str(checkpoints.with_auto_map(checkpoints.good(tmp_path / "own")))
    [load] = prepared(session, [session.pool.submit_load(folder, trust_remote_code=True)])
    session.engine.step()
    [asked] = ask(session, folder, 1)
    run(session)
    assert load.future.result(0).trusted
    assert outcome(asked).text
    assert script.begun == 1


def test_two_answers_alternate(session: Session, script: SlowBackend, tmp_path: Path) -> None:
    log: list[str] = []

    def sink(name: str) -> Callable[[GenerationChunk], None]:
        return lambda chunk: log.append(name) if chunk.text else None

    works = []
    for name in ("first", "second"):
        folder = str(checkpoints.good(tmp_path / name))
        prepared(session, [session.pool.submit_load(folder)])
        run(session)
        works.append(folder)
    asked = [session.start(question(f), sink=sink(Path(f).name)) for f in works]
    prepared(session, asked)
    run(session)

    [before, *after] = log[:2]
    assert log == [before, *after] * 8, "a token of each in turn"


def test_answer_continues_during_a_sliced_load(
    session: Session, script: SlowBackend, folder: str, tmp_path: Path
) -> None:
    prepared(session, [session.pool.submit_load(folder)])
    run(session)
    script.log.clear()

    def sink(chunk: GenerationChunk) -> None:
        if chunk.text:
            script.log.append("token")

    asked = session.start(question(folder), sink=sink)
    prepared(session, [asked])
    run(session, lambda: "token" in script.log)
    [load] = prepared(
        session, [session.pool.submit_load(str(checkpoints.good(tmp_path / "other")))]
    )
    run(session)

    assert load.future.result(0) is not None
    pairs = list(zip(script.log, script.log[1:], strict=False))
    assert script.log.count("load other") == SLICES
    assert ("load other", "load other") not in pairs, "there is a token between two slices"


def test_short_request_does_not_wait_for_a_long_answer(
    session: Session, script: SlowBackend, folder: str
) -> None:
    prepared(session, [session.pool.submit_load(folder)])
    run(session)
    script.hold = "decode"
    long = prepared(session, [session.start(question(folder))])[0]
    run(session, lambda: long.progress.phase == "decode")
    [short] = ask(session, folder, 1)
    run(session, lambda: short.progress.phase == "decode")
    assert not long.done
    assert short.snapshot().completion_tokens == 1
    assert session.cancel() == 2


@pytest.mark.parametrize("phase", ["loading", "prefill", "decode"])
def test_thread_death_fails_all_requests_and_the_next_one_reloads(
    tmp_path: Path, phase: str
) -> None:
    folder = str(checkpoints.good(tmp_path / "seer"))
    doomed = str(checkpoints.good(tmp_path / "doomed"))
    script = ScriptedBackend("a b c", hold=phase)  # type: ignore[arg-type]
    session = scripted_session(backend=script)
    asked = [session.start(question(folder)) for _ in range(5)]
    while any(work.progress.phase != phase for work in asked):
        assert not any(work.done for work in asked)

    def die() -> Generator[None, None, None]:
        yield from ()
        raise SystemExit(1)

    errors: list[BaseException] = []
    session.engine.submit(die(), errors.append)
    for work in asked:
        with pytest.raises(EngineError, match="died"):
            work.future.result(1)
    assert session.running == []
    assert len(session.pool) == 0

    loads, script.hold = script.loads, None
    assert session.start(question(folder)).future.result(10).text == "a b c"
    assert script.loads == loads + 1
    assert [model.users for model in session.pool] == [0]
    # Also where it is the answer itself that ends it.
    script.error = SystemExit(1)
    with pytest.raises(EngineError, match="SystemExit"):
        session.start(question(doomed)).future.result(10)
    script.error = MemoryError("no more")
    with pytest.raises(GenerationError, match="MemoryError"):
        session.start(question(doomed)).future.result(10)
    session.close()


@pytest.mark.model
def test_real_model_gives_the_same_answer_after_thread_death() -> None:
    session = default_session._make()
    request = GenerationRequest(
        prompt="What is it?", sampling=Sampling(max_tokens=12, temperature=0)
    )
    before = session.start(request).future.result(60)

    def die() -> Generator[None, None, None]:
        yield from ()
        raise SystemExit

    asked = [session.start(request) for _ in range(4)]
    while not any(work.progress.phase == "decode" for work in asked):
        assert not all(work.done for work in asked)
    session.engine.submit(die(), lambda error: None)
    for work in asked:
        # One may just have had the time to end.
        assert isinstance(work.future.exception(10), EngineError | None)
    after = session.start(request).future.result(60)
    assert (after.text, after.usage) == (before.text, before.usage)
    assert after.timings.load > 0
    assert session.pool.unload("demo") > 0
    session.close()
