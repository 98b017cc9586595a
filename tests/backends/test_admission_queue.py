"""Requests wait for memory in one FIFO queue; a request that fits alone is never refused."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_magic.backends.batching.admission import (
    AdmissionQueue,
    BatchLimits,
    MemoryAdmission,
    Reservation,
)
from mlx_magic.backends.batching.memory_estimate import (
    ModelDimensions,
    RequestMemory,
    estimate_request,
)
from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import Memory
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import MemoryBudgetError

pytestmark = pytest.mark.model  # asks mlx what it runs on

CONFIG = {"num_hidden_layers": 10, "num_attention_heads": 8, "hidden_size": 512}
CHUNK = 64


class Device:
    """Memory in which each answer grows up to its estimated need."""

    def __init__(self, limit: int, *, weights: int = 0, kept: int = 0) -> None:
        self.limit, self.weights, self.kept = limit, weights, kept
        self.tables: list[FakeBatch] = []
        self.forgot = 0

    def memory(self) -> Memory:
        held = sum(table.held() for table in self.tables)
        return Memory(self.weights + self.kept + held, 0, self.limit)

    def forget(self) -> None:
        self.forgot += 1
        self.kept = 0


class FakeBatch:
    """A batch without a model: its rows are as long as its longest."""

    def __init__(self, held: Device, line: AdmissionQueue, *, most: int = 32) -> None:
        platform.start()
        self.table = BatchLimits(most, self.held)
        self.rows: dict[FakeRequest, int] = {}
        self.room = MemoryAdmission(
            "m", CONFIG, chunk=CHUNK, forget=held.forget, memory=held.memory, queue=line
        )
        held.tables.append(self)

    def held(self) -> int:
        return len(self.rows) * max(self.rows.values(), default=0)


class FakeRequest:
    """A request with one prefill step, then decode steps."""

    def __init__(self, table: FakeBatch, prompt: int, count: int) -> None:
        self.table, self.prompt, self.count = table, prompt, count
        self.cancel = CancelToken()
        self.waited = self.ended = False
        self.error: Exception | None = None
        self.steps = self._steps()

    @property
    def inside(self) -> bool:
        return self in self.table.rows

    def _steps(self) -> Generator[None, None, None]:
        placed = yield from self.table.room.reserve(
            self.table.table,
            prompt_tokens=self.prompt,
            image_tokens=0,
            max_tokens=self.count,
            cancel=self.cancel,
            on_wait=self._wait,
        )
        with placed as place:
            while len(self.table.rows) >= self.table.table.most:
                yield
                self.cancel.checkpoint()
            try:
                for written in range(self.count + 1):
                    self.table.rows[self] = cache_of(self.prompt + written)
                    place.prefilling = False
                    yield
                    self.cancel.checkpoint()
            finally:
                self.table.rows.pop(self, None)

    def _wait(self) -> None:
        assert not self.waited, "it is told once"
        self.waited = True

    def step(self) -> None:
        try:
            next(self.steps)
        except StopIteration:
            self.ended = True
        except (Cancelled, MemoryBudgetError) as error:
            self.ended, self.error = True, error


def cache_of(tokens: int) -> int:
    return ModelDimensions.of(CONFIG).kv_bytes(4) * tokens


def needed(prompt: int, count: int) -> RequestMemory:
    return estimate_request(
        ModelDimensions.of(CONFIG), prompt_tokens=prompt, max_tokens=count, chunk=CHUNK, itemsize=4
    )


def run_round_robin(asked: list[FakeRequest], look: Any = lambda slice_: None) -> None:
    """Run all round-robin, as the engine does."""
    for slice_ in range(10_000):
        going = [each for each in asked if not each.ended]
        if not going:
            return
        look(slice_)
        for each in going:
            each.step()
    raise AssertionError("somebody waits for ever")


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: False)


def bytes_for(answers: int, prompt: int = 100, count: int = 20) -> int:
    """Bytes for some answers, one of them in prefill."""
    one = needed(prompt, count)
    return answers * one.cache + one.reading


def test_requests_that_fit_are_admitted_and_the_others_wait() -> None:
    held, line = Device(bytes_for(3) + 5_000, weights=5_000), AdmissionQueue()
    table = FakeBatch(held, line)
    asked = [FakeRequest(table, 100, 20) for _ in range(8)]
    most = 0

    def look(slice_: int) -> None:
        nonlocal most
        most = max(most, len(table.rows))
        assert held.memory().active <= held.limit

    run_round_robin(asked, look)
    assert most == 3
    assert [each.error for each in asked] == [None] * 8
    assert [each.waited for each in asked] == [False] * 3 + [True] * 5
    assert (line.admitted, len(line)) == ([], 0)


def test_long_prompt_pads_all_rows_of_its_batch() -> None:
    held = Device(bytes_for(2, 1_000))
    line = AdmissionQueue()
    table = FakeBatch(held, line)
    asked = [FakeRequest(table, 1_000, 20), *(FakeRequest(table, 10, 20) for _ in range(4))]
    most = 0

    def look(slice_: int) -> None:
        nonlocal most
        if asked[0].inside:
            most = max(most, len(table.rows))

    run_round_robin(asked, look)
    assert most == 2


def test_request_that_never_fits_is_refused_and_others_wait() -> None:
    held, line = Device(bytes_for(1)), AdmissionQueue()
    table = FakeBatch(held, line)
    first, second, third = (
        FakeRequest(table, 100, 20),
        FakeRequest(table, 100, 20),
        FakeRequest(table, 500, 20),
    )
    for each in (first, second, third):
        each.step()
    assert isinstance(third.error, MemoryBudgetError)
    assert (first.inside, second.inside, second.error) == (True, False, None)
    run_round_robin([first, second])
    assert second.error is None


def test_admission_is_fifo() -> None:
    held, line = Device(bytes_for(4)), AdmissionQueue()
    table, other = FakeBatch(held, line), FakeBatch(held, line)
    small = [FakeRequest(table, 100, 20)]
    long = FakeRequest(other, 900, 20)
    begun: list[int] = []

    def look(slice_: int) -> None:
        if long.inside and not begun:
            begun.append(slice_)
        if slice_ < 60:
            new = FakeRequest(table, 100, 20)
            new.step()
            small.append(new)

    small[0].step()
    long.step()
    assert long.waited
    for slice_ in range(200):
        look(slice_)
        for each in (*small, long):
            if not each.ended:
                each.step()
    assert begun, "though small ones never ceased to come"
    assert begun[0] <= 25, "as soon as the first had ended"
    run_round_robin([*small, long])


@pytest.mark.parametrize("first", [True, False], ids=["first", "behind"])
def test_cancelled_waiting_request_does_not_block_others(first: bool) -> None:
    held, line = Device(bytes_for(1)), AdmissionQueue()
    table = FakeBatch(held, line)
    asked = [FakeRequest(table, 100, 20) for _ in range(3)]
    for each in asked:
        each.step()
    victim, other = asked[1:] if first else asked[:0:-1]
    victim.cancel.cancel()
    victim.step()
    assert isinstance(victim.error, Cancelled)
    assert not victim.inside
    assert len(line) == 1
    run_round_robin([asked[0], other])
    assert other.error is None


def test_caches_are_cleared_before_a_request_waits() -> None:
    held, line = Device(bytes_for(2), kept=bytes_for(1)), AdmissionQueue()
    table = FakeBatch(held, line)
    asked = [FakeRequest(table, 100, 20) for _ in range(2)]
    for each in asked:
        each.step()
    assert (held.forgot, asked[1].waited) == (1, False)
    asked.append(FakeRequest(table, 100, 20))
    for _ in range(5):
        asked[2].step()
    assert held.forgot == 2, "once for each"


def test_memory_is_checked_again_before_a_single_request_is_admitted() -> None:
    held, line = Device(bytes_for(1)), AdmissionQueue()
    table = FakeBatch(held, line)
    first, second = FakeRequest(table, 100, 20), FakeRequest(table, 100, 20)
    first.step()
    second.step()
    held.weights = 1_000
    run_round_robin([first, second])
    assert first.error is None
    assert isinstance(second.error, MemoryBudgetError)


def test_unknown_limit_admits_all_requests() -> None:
    table = FakeBatch(Device(0), AdmissionQueue())
    asked = [FakeRequest(table, 10**6, 2) for _ in range(32)]
    for each in asked:
        each.step()
    assert all(each.inside for each in asked)


def test_committed_memory_counts_at_most_the_batch_limit() -> None:
    line = AdmissionQueue()
    table = BatchLimits(most=2)
    line.admitted = [Reservation(table, RequestMemory(100, 7)) for _ in range(5)]
    assert line.committed(Reservation(table, RequestMemory(50, 7))) == 2 * 100 + 7
    assert line.committed(Reservation(BatchLimits(), RequestMemory(50, 7))) == 2 * 100 + 7 + 50 + 7


def test_chunk_and_logits_count_once_for_requests_prefilled_together() -> None:
    table, line = BatchLimits(most=2), AdmissionQueue()
    line.admitted = [Reservation(table, RequestMemory(100, 7, 50)) for _ in range(5)]
    assert line.committed(Reservation(table, RequestMemory(100, 7, 30))) == 2 * 100 + 7 + 50
    for place in line.admitted:
        place.prefilling = False
    assert line.committed(Reservation(table, RequestMemory(100, 7, 30))) == 2 * 100 + 7 + 30


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 300), st.integers(1, 12)),
        min_size=1, max_size=14,
    ),
    limit=st.integers(1, 4),
    cancels=st.dictionaries(st.integers(0, 60), st.integers(0, 13)),
)  # fmt: skip
def test_memory_limit_is_never_exceeded_and_every_request_ends(
    sizes: list[tuple[int, int, int]], limit: int, cancels: dict[int, int]
) -> None:
    held, line = Device(bytes_for(limit, 300, 12)), AdmissionQueue()
    tables = [FakeBatch(held, line), FakeBatch(held, line, most=2)]
    asked = [FakeRequest(tables[at], prompt, count) for at, prompt, count in sizes]

    def look(slice_: int) -> None:
        assert held.memory().active <= held.limit
        at = cancels.get(slice_, -1)
        if 0 <= at < len(asked):
            asked[at].cancel.cancel()

    run_round_robin(asked, look)
    assert all(each.error is None or each.cancel.requested for each in asked)
    assert (line.admitted, len(line)) == ([], 0)


def test_queue_of_a_dead_thread_is_cleared() -> None:
    held, line = Device(bytes_for(1)), AdmissionQueue()
    table = FakeBatch(held, line)
    first, second = FakeRequest(table, 100, 20), FakeRequest(table, 100, 20)
    for each in (first, second):
        each.step()
    line.forget()
    assert (len(line), line.admitted) == (0, [])
    # Requests that are closed late find themselves already removed.
    second.steps.close()
    first.steps.close()
    third = FakeRequest(FakeBatch(Device(bytes_for(1)), line), 100, 20)
    run_round_robin([third])
    assert (third.error, third.waited) == (None, False)
