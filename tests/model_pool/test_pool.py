"""The pool: leases, waiting and forced unloads, budget, pins, idle TTL, listeners."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.task import Task
from mlx_magic.errors import (
    MemoryBudgetError,
    ModelError,
    ModelInUseError,
    ModelNotFoundError,
    RequestError,
)
from mlx_magic.model_pool.model_info import Lease, Load
from mlx_magic.models.checkpoints import checkpoint as checkpoints_of
from mlx_magic.testing import ManualClock, ScriptedBackend, scripted_session
from tests import checkpoints

SIZE = 96
"""Bytes that every model takes."""


class Bench:
    """A session with a manually stepped engine and a manual clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.script = ScriptedBackend("a b c d")
        self.session = scripted_session(backend=self.script, threaded=False, clock=self.clock)
        self.pool = self.session.pool
        self._folder = folder

    def load(self, name: str, *, run: bool = True, **options: Any) -> Load:
        load = Load(name, clock=self.clock, **options)
        self.pool.queue_load(load, self.checkpoint(name))
        if run:
            self.run()
        return load

    def ask(self, name: str, *, until: str = "") -> Generation:
        """Ask, and go on until a phase is reached or all is done."""
        request = GenerationRequest(prompt="What is it?", model=name)
        generation = Generation(request, clock=self.clock)
        steps = self.session._steps(generation, self.checkpoint(name))
        self.session.engine.submit(steps, generation.fail)
        self.run(lambda: bool(until) and generation.progress.phase == until)
        return generation

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while not until() and self.session.engine.step():
            pass

    def checkpoint(self, name: str) -> Any:
        folder = self._folder / name
        return checkpoints_of.inspect(folder if folder.exists() else checkpoints.good(folder), name)

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.pool]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.session.close()


def outcome(work: Task[Any]) -> Any:
    return work.future.result(0)


# Leases and unloads


def test_unload_waits_for_running_and_newly_arrived_requests(bench: Bench) -> None:
    first = bench.ask("A", until="decode")
    unload = bench.pool.submit_unload("A")
    assert unload.progress.note == ("unloading A once its user is done (--force cancels requests)")
    second = bench.ask("A", until="decode")
    assert "its 2 users are" in unload.progress.note
    assert not unload.done
    bench.run()
    assert outcome(first).text == outcome(second).text == "a b c d"
    assert outcome(unload) == SIZE
    assert (bench.script.loads, bench.script.active, bench.names) == (1, 0, [])


def test_waiting_unload_can_be_cancelled(bench: Bench) -> None:
    asked = bench.ask("A", until="decode")
    unload = bench.pool.submit_unload("A")
    assert unload in bench.session.running
    unload.cancel()
    assert outcome(unload) is None
    bench.run()
    assert outcome(asked).finish_reason == "stop"
    assert bench.names == ["A"]
    # Once unused, it is being unloaded and cannot be leased anymore.
    gone = bench.pool.submit_unload("A")
    gone.cancel()
    bench.run()
    assert outcome(gone) == SIZE


def test_forced_unload_cancels_requests_and_later_ones_reload(
    bench: Bench,
) -> None:
    asked = [bench.ask("A", until="decode") for _ in range(2)]
    unload = bench.pool.submit_unload("A", force=True)
    assert unload.cancelled == 2
    assert bench.names == ["A"], "not under its users"
    late = bench.ask("A")
    assert [outcome(work).finish_reason for work in asked] == ["cancelled"] * 2
    assert outcome(unload) == SIZE
    assert outcome(late).finish_reason == "stop"
    assert (bench.script.loads, bench.script.closed) == (2, 1)


def test_forced_unload_keeps_waiting_loads(bench: Bench) -> None:
    works = [bench.load("A", run=False), bench.load("A", run=False)]
    bench.run(lambda: bool(bench.names))
    unload = bench.pool.submit_unload("A", force=True)
    bench.run()
    assert outcome(unload) == SIZE
    assert [outcome(work) is not None for work in works] == [True, True]


def test_forced_unload_refuses_to_end_a_lease(bench: Bench) -> None:
    bench.load("A")
    with bench.pool.lease("A") as info:
        assert (info.name, info.users) == ("A", 1)
        with pytest.raises(ModelInUseError, match="leave its with block"):
            bench.pool.submit_unload("A", force=True)
        unload = bench.pool.submit_unload("A")
        bench.run()
        assert not unload.done
        assert bench.ask("A").done, "work within the block goes on"
    bench.run()
    assert outcome(unload) == SIZE


@pytest.mark.parametrize("again", ["load", "pin", "lease"])
def test_new_use_of_a_model_withdraws_a_waiting_unload(bench: Bench, again: str) -> None:
    bench.ask("A", until="decode")
    unload = bench.pool.submit_unload("A")
    if again == "load":
        bench.load("A", run=False)
        bench.run(lambda: unload.done)
    elif again == "pin":
        bench.pool.pin("A")
    else:
        with bench.pool.lease("A"):
            pass
    assert outcome(unload) is None
    assert unload.withdrawn
    bench.run()
    assert bench.names == ["A"]


def test_lease_loads_the_model_and_is_released_on_error(tmp_path: Path) -> None:
    folder = str(checkpoints.good(tmp_path / "seer"))
    session = scripted_session()
    with contextlib.suppress(ZeroDivisionError), session.pool.lease(folder) as info:
        assert session.pool[folder].users == info.users == 1
        raise ZeroDivisionError
    assert session.pool[folder].users == 0
    with pytest.raises(ModelNotFoundError), session.pool.lease("nonsense"):
        pass
    session.close()


def test_released_lease_does_not_hold_a_model_loaded_later(bench: Bench) -> None:
    hold = Lease()
    load = bench.load("A", run=False, hold=hold)
    bench.session.engine.step()
    bench.pool._eviction.release(hold)
    bench.run()
    assert outcome(load) is None
    assert all(model.users == 0 for model in bench.pool)


def test_two_unloads_of_one_model_both_finish(bench: Bench) -> None:
    bench.ask("A", until="decode")
    unloads = [bench.pool.submit_unload("A") for _ in range(2)]
    bench.run()
    assert [outcome(unload) for unload in unloads] == [SIZE, SIZE]
    with pytest.raises(ModelNotFoundError, match="loaded: none"):
        bench.pool.submit_unload("A")


def test_waiting_unload_ends_with_the_session_or_its_thread(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ask("A", until="decode")
    lost = bench.pool.submit_unload("A")
    bench.pool._forget()
    assert "died" in str(lost.future.exception(0))
    bench.run()
    bench.ask("B", until="decode")
    waiting = bench.pool.submit_unload("B")
    bench.session.close()
    assert outcome(waiting) is None
    assert bench.session.running == []


# Budget


def test_least_recently_used_model_is_evicted_and_named_by_the_load(bench: Bench) -> None:
    bench.pool.budget = 2 * SIZE
    for name in "AB":
        bench.load(name)
        bench.clock.advance(1)
    bench.ask("A")
    bench.clock.advance(1)
    load = bench.load("C")
    assert bench.names == ["A", "C"]
    assert load.notes == ["Unloaded B (96 B) to make room."]
    [gone] = bench.pool.unloaded
    assert str(gone) == "B (96 B) to make room for C"
    asked = bench.ask("B")
    assert asked.notes == ["Unloaded A (96 B) to make room."]
    assert bench.script.active == 2 * SIZE


def test_evicted_model_is_freed_before_the_new_load(bench: Bench) -> None:
    bench.pool.budget = SIZE
    bench.load("A")
    most = 0

    def watched() -> bool:
        nonlocal most
        most = max(most, bench.script.active)
        return False

    load = bench.load("B", run=False)
    bench.run(watched)
    assert outcome(load) is not None
    assert most == SIZE


def test_cancelled_load_evicts_nothing(bench: Bench) -> None:
    bench.pool.budget = SIZE
    bench.load("A")
    load = bench.load("B", run=False)
    bench.session.engine.step()
    load.cancel()
    bench.run()
    assert bench.names == ["A"]


def test_load_that_cannot_fit_is_refused_before_eviction(bench: Bench) -> None:
    bench.pool.budget = 3 * SIZE
    bench.load("A", pin=True)
    bench.load("B")
    bench.load("C")
    using = bench.ask("C", until="decode")
    bench.pool.budget = 2 * SIZE + SIZE // 2
    bench.load("E", run=False)
    bench.run(lambda: using.done)
    # C was in use when E came, and B left when the budget was lowered.
    assert bench.names == ["A", "C"]

    load = bench.load("D", run=False)
    with bench.pool.lease("C"):
        bench.run()
        error = load.future.exception(0)
    assert isinstance(error, MemoryBudgetError)
    assert (error.needed_bytes, error.limit_bytes) == (SIZE, 2 * SIZE + SIZE // 2)
    assert set(error.could_unload) == {"A", "C"}
    assert str(error) == (
        "D needs 96 B, but of the 240 B that models may take only 48 B can be had: "
        "A (96 B) is pinned, C (96 B) is in use. Unload what is pinned (%vision unload A), wait "
        "for C, or end its use (%vision unload C --force), or choose a smaller or quantized model."
    )
    assert bench.names == ["A", "C"]
    with pytest.warns(UserWarning, match="Unload it, or unpin it"):
        bench.pool.budget = SIZE - 1
    assert bench.names == ["A"]


def test_model_larger_than_the_whole_budget_is_refused(bench: Bench) -> None:
    bench.pool.budget = SIZE - 1
    with pytest.raises(MemoryBudgetError, match="more than the 95 B that models may take"):
        outcome(bench.load("A"))


def test_lower_budget_evicts_and_names_models_that_cannot_leave(bench: Bench) -> None:
    for name in "ABC":
        bench.load(name)
        bench.clock.advance(1)
    bench.pool.pin("A")
    asked = bench.ask("C", until="decode")
    gone, refused = bench.pool.set_budget(SIZE)
    assert [info.name for info in gone] == ["B"]
    assert refused is not None
    assert refused.over_budget_message.startswith(
        "Models take 96 B more than the budget of 96 B: A (96 B) is pinned, C (96 B) is in use."
    )
    with pytest.warns(UserWarning, match="A .* is pinned"):
        bench.pool.budget = SIZE
    bench.run()
    # A model in use is evicted when its lease ends.
    assert outcome(asked).finish_reason == "stop"
    assert bench.names == ["A"]
    assert [gone.why for gone in bench.pool.unloaded] == ["budget", "budget"]


def test_load_larger_than_estimated_counts_with_its_real_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.script, "estimate", lambda checkpoint: 10)
    bench.pool.budget = SIZE + 20
    bench.load("A")
    assert bench.load("B").notes == ["Unloaded A (96 B) to make room."]
    assert bench.names == ["B"]
    bench.pool.pin("B")
    refused = bench.load("A").future.exception(0)
    assert isinstance(refused, MemoryBudgetError)
    assert refused.needed_bytes == SIZE, "it was measured before"
    assert bench.script.loads == 2
    unseen = bench.load("C").future.exception(0)
    assert isinstance(unseen, MemoryBudgetError)
    assert (bench.script.loads, bench.script.active, bench.names) == (3, SIZE, ["B"])


def test_failed_load_frees_its_budget_before_all_its_requests_are_notified(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> Iterator[None]:
        yield
        raise RuntimeError("broken")

    monkeypatch.setattr(bench.script, "load", load)
    loads = [bench.load("A", run=False) for _ in range(2)]
    bench.run(lambda: bench.pool.taken > 0)
    assert bench.pool.taken == SIZE
    bench.run(lambda: loads[0].done)
    assert (loads[1].done, bench.pool.taken) == (False, 0)
    bench.run()
    assert loads[1].future.exception(0) is not None


def test_load_size_is_measured_only_in_its_own_slices(bench: Bench) -> None:
    bench.load("A", run=False)
    other = bench.load("B", run=False)
    bench.run()
    assert outcome(other).nbytes == SIZE
    bench.script.active += 1000
    bench.load("C", run=False)
    bench.session.engine.step()
    bench.script.active -= 500
    bench.run()
    assert [model.nbytes for model in bench.pool] == [SIZE] * 3


def warm_up(model: Any, *, cancel: CancelToken, progress: object) -> Iterator[None]:
    """Leave memory behind, as an answer does until it is collected."""
    model._backend.active += 1000
    for _ in range(3):
        yield
        cancel.checkpoint()


def test_memory_of_the_warm_up_does_not_count_toward_the_model_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_magic.testing.ScriptedModel.warm_up", warm_up)
    assert outcome(bench.load("A")).nbytes == SIZE
    assert bench.script.active == SIZE + 1000


def test_load_cancelled_during_warm_up_leaves_no_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_magic.testing.ScriptedModel.warm_up", warm_up)
    load = bench.load("A", run=False)
    bench.run(lambda: bench.script.active > SIZE)
    assert bench.pool.taken == SIZE
    load.cancel()
    bench.run()
    assert outcome(load) is None
    assert (bench.script.active, bench.script.closed, bench.pool.taken) == (1000, 1, 0)


def test_fractional_budget_is_a_share_of_device_memory(bench: Bench) -> None:
    bench.script.total = 4 * SIZE
    assert bench.pool.budget_bytes == 4 * SIZE
    bench.pool.budget = 0.5
    assert bench.pool.budget_bytes == 2 * SIZE
    bench.pool.budget = "1 TB"
    assert bench.pool.budget_bytes == 4 * SIZE
    with pytest.raises(RequestError, match="is not a memory budget"):
        bench.pool.budget = "much"
    assert bench.pool.budget == "1 TB"


def test_caches_are_cleared_for_a_load_that_needs_their_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.load("A")
    forgotten: list[object] = []

    def forget(model: object) -> int:
        forgotten.append(model)
        return 0

    monkeypatch.setattr("mlx_magic.testing.ScriptedModel.forget", forget)
    bench.script.total = 3 * SIZE
    bench.load("B")
    assert not forgotten
    bench.script.active += SIZE // 2
    bench.load("C")
    assert len(forgotten) == 2


# Pins and time-to-live


def test_pinned_model_is_only_unloaded_explicitly(bench: Bench) -> None:
    bench.pool.budget = 2 * SIZE
    bench.pool.idle_ttl = 10
    bench.load("A", pin=True)
    bench.load("B")
    assert [model.pinned for model in bench.pool] == [True, False]
    bench.clock.advance(100)
    bench.pool._eviction.expire()
    assert bench.names == ["A"]
    bench.load("B")
    bench.load("C")
    assert bench.names == ["A", "C"]
    assert outcome(bench.load("A")).pinned, "a load without --pin changes nothing"
    bench.pool.unpin("A")
    bench.clock.advance(1)
    bench.ask("C")
    bench.load("B")
    assert bench.names == ["C", "B"]
    bench.pool.pin("C")
    unload = bench.pool.submit_unload("C")
    bench.run()
    assert outcome(unload) == SIZE
    with pytest.raises(ModelNotFoundError):
        bench.pool.pin("C")


def test_idle_model_is_evicted_after_its_ttl_and_one_in_use_is_not(bench: Bench) -> None:
    bench.load("A")
    bench.clock.advance(4)
    bench.load("B")
    asked = bench.ask("B", until="decode")
    bench.pool.idle_ttl = 10
    assert bench.pool._eviction.expire() == 6
    bench.clock.advance(6)
    assert bench.pool._eviction.expire() is None
    assert bench.names == ["B"]
    assert bench.script.active == 2 * SIZE, "freed on the engine's thread"
    bench.clock.advance(100)
    assert bench.pool._eviction.expire() is None
    bench.run()
    assert outcome(asked).finish_reason == "stop"
    assert bench.pool._eviction.expire() == 10
    assert bench.pool["B"].idle == 0
    bench.clock.advance(10)
    bench.pool._eviction.expire()
    bench.run()
    assert (bench.names, bench.script.active) == ([], 0)
    assert [str(gone) for gone in bench.pool.unloaded] == [
        "A (96 B) not used for a while",
        "B (96 B) not used for a while",
    ]


@pytest.mark.parametrize("bad", [0, -1, "5", True])
def test_invalid_idle_ttl_is_refused(bench: Bench, bad: Any) -> None:
    with pytest.raises(RequestError, match="is not a time"):
        bench.pool.idle_ttl = bad
    assert bench.pool.idle_ttl is None


def test_idle_timer_evicts_on_the_inference_thread(tmp_path: Path) -> None:
    session = scripted_session()
    gone = threading.Event()
    session.pool.load(checkpoints.good(tmp_path / "seer"), alias="seer")
    stop = session.pool.watch(lambda: None if len(session.pool) else gone.set())
    session.pool.idle_ttl = 0.001
    assert gone.wait(10)
    timer = next(t for t in threading.enumerate() if t.name == "mlx-magic-idle")
    assert timer.daemon
    stop()
    session.close()
    timer.join(10)
    assert not timer.is_alive()


# Listeners and many threads


def test_listeners_are_called_without_a_lock(bench: Bench) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        # From another thread: it would hang if a lock were held.
        thread = threading.Thread(
            target=lambda: seen.append((len(bench.pool), sum(m.users for m in bench.pool)))
        )
        thread.start()
        thread.join(5)
        assert not thread.is_alive()

    stop = bench.pool.watch(look)
    bench.load("A")
    bench.ask("A", until="decode")
    unload = bench.pool.submit_unload("A")
    bench.pool.pin("A")
    bench.pool.unpin("A")
    bench.pool.set_budget(SIZE)
    bench.pool.submit_unload("A", force=True)
    bench.run()
    assert unload.done
    assert {(0, 0), (1, 0), (1, 1)} <= set(seen)
    stop()
    told = len(seen)
    bench.load("B")
    assert len(seen) == told


def test_pool_supports_repr_len_iteration_and_lookup(bench: Bench) -> None:
    assert repr(bench.pool) == "<ModelPool: empty>"
    bench.load("A")
    bench.load("B", pin=True)
    assert [model.name for model in bench.pool] == ["A", "B"]
    assert ("A" in bench.pool, "C" in bench.pool, 3 in bench.pool) == (True, False, False)
    assert bench.pool["B"].pinned
    assert (len(bench.pool), bench.pool.taken) == (2, 2 * SIZE)
    assert repr(bench.pool) == "<ModelPool: A (96 B), B (96 B, pinned)>"
    bench.clock.advance(5)
    assert bench.pool["A"].idle == 5
    with pytest.raises(ModelNotFoundError, match="C is not loaded; loaded: A, B"):
        bench.pool["C"]


def test_concurrent_threads_lose_no_requests(tmp_path: Path) -> None:
    script = ScriptedBackend("a b")
    session = scripted_session(backend=script)
    pool = session.pool
    folders = [str(checkpoints.good(tmp_path / name)) for name in "ABCD"]
    pool.budget = 2 * SIZE

    def work(index: int) -> str:
        folder = folders[index % 4]
        try:
            match index % 6:
                case 0:
                    with pool.lease(folder) as info:
                        assert info.path in {model.path for model in pool}
                case 1:
                    pool.load(folder, pin=True)
                    pool.unpin(folder)
                case 2:
                    pool.unload(folder, force=index % 4 == 1)
                case 3:
                    pool.budget = 2 * SIZE
                case _:
                    request = GenerationRequest(prompt="Hi", model=folder)
                    return str(session.start(request).future.result(30).finish_reason)
        except ModelError as error:
            # Refused, not found, in use, cancelled: each is a valid outcome.
            return type(error).__name__
        return "done"

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(work, range(240)))
    assert len(outcomes) == 240
    assert {"done", "stop"} <= set(outcomes)
    for model in pool:
        assert (model.users, model.pinned) in {(0, False), (0, True)}
        pool.unload(model.name)
    assert (script.active, script.loads) == (0, script.closed)
    session.close()
