"""How requests share the steps of a batch, and how they leave it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.backends.batching.batch import Batch, NextToken, Slot, StepFailedError
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import EngineError


class Counting(Batch):
    """Generates 0, 1, 2 ... for each request, after one prefill step per prompt token."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.reading: dict[int, int] = {}
        self.next: dict[int, int] = {}
        self.error: Exception | None = None

    def add(self, prompt: int = 0) -> Slot:
        slot = self.take_slot()
        self.reading[slot.uid] = prompt
        self.next[slot.uid] = 0
        return slot

    def _step(self) -> None:
        self.steps += 1
        if self.error is not None:
            raise self.error
        for uid in self.next:
            if self.reading[uid]:
                self.reading[uid] -= 1
                self._slots[uid].read += 1
            else:
                self._slots[uid].give(NextToken(self.next[uid]))
                self.next[uid] += 1

    def close(self) -> None:
        self._end_all()

    def _abandon(self) -> list[int]:
        uids = list(self.next)
        self.next.clear()
        return uids

    def _drop(self, uid: int) -> None:
        self.next.pop(uid, None)
        self.reading.pop(uid, None)

    def _clear(self) -> None:
        self.next.clear()
        self.reading.clear()
        self._slots.clear()


def request(
    batch: Counting, log: list[int], count: int, cancel: CancelToken, prompt: int = 0
) -> Generator[None, None, None]:
    slot = batch.add(prompt)
    try:
        while len(log) < count:
            written = yield from batch.follow(slot, cancel)
            if written is not None:
                log.append(written.token)
    finally:
        batch.leave(slot)


def run_round_robin(jobs: deque[Generator[None, None, None]]) -> None:
    """Run the jobs round-robin, as the engine does."""
    while jobs:
        job = jobs.popleft()
        try:
            next(job)
        except StopIteration:
            continue
        jobs.append(job)


def test_single_request_gets_one_token_per_step() -> None:
    batch, log = Counting(), list[int]()
    job = request(batch, log, 3, CancelToken())
    next(job)
    assert batch.steps == 0
    for count in (1, 2):
        next(job)
        assert log == list(range(count))
        assert batch.steps == count
    with pytest.raises(StopIteration):
        next(job)
    assert log == [0, 1, 2]
    assert len(batch) == 0


def test_requests_share_each_step() -> None:
    batch = Counting()
    logs: list[list[int]] = [[] for _ in range(5)]
    run_round_robin(deque(request(batch, log, 10, CancelToken()) for log in logs))
    assert logs == [list(range(10))] * 5
    assert batch.steps == 10


def test_request_in_prefill_gets_no_token_and_none_is_lost() -> None:
    batch, short, long = Counting(), list[int](), list[int]()
    run_round_robin(
        deque([request(batch, short, 6, CancelToken()), request(batch, long, 6, CancelToken(), 4)])
    )
    assert short == long == list(range(6))


def test_cancelled_request_leaves_and_others_continue() -> None:
    batch, logs = Counting(), [list[int](), list[int]()]
    tokens = [CancelToken(), CancelToken()]
    jobs = [request(batch, log, 5, token) for log, token in zip(logs, tokens, strict=True)]
    for job in jobs:
        next(job)
    tokens[0].cancel()
    with pytest.raises(Cancelled):
        next(jobs[0])
    run_round_robin(deque(jobs[1:]))
    assert logs[1] == list(range(5))
    assert len(batch) == 0


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_failed_request_ends_at_its_next_slice(first: bool) -> None:
    batch, logs = Counting(), [list[int](), list[int]()]
    jobs = [request(batch, log, 9, CancelToken()) for log in logs]
    for job in jobs * 3:
        next(job)
    failing = 0 if first else 1
    slots = list(batch._slots.values())
    slots[failing].fail(ValueError("no"))
    next(jobs[1 - failing])
    with pytest.raises(ValueError, match="no"):
        next(jobs[failing])
    run_round_robin(deque([jobs[1 - failing]]))
    assert logs[1 - failing] == list(range(9))
    assert len(logs[failing]) < 4


@pytest.mark.parametrize(("count", "error"), [(1, MemoryError), (2, StepFailedError)])
def test_failed_step_of_several_rows_fails_each_request(count: int, error: type[Exception]) -> None:
    batch = Counting()
    jobs = [request(batch, [], 5, CancelToken()) for _ in range(count)]
    for job in jobs:
        next(job)
    batch.error = MemoryError("too much")
    for job in jobs:
        with pytest.raises(error, match="too much"):
            run_round_robin(deque([job]))
    batch.error = None
    log: list[int] = []
    run_round_robin(deque([request(batch, log, 2, CancelToken())]))
    assert log == [0, 1]


def test_unload_fails_the_requests_in_the_batch() -> None:
    batch = Counting()
    jobs = [request(batch, [], 5, CancelToken()) for _ in range(2)]
    next(jobs[0])
    next(jobs[1])
    batch._end_all()
    for job in jobs:
        with pytest.raises(EngineError, match="unloaded"):
            run_round_robin(deque([job]))
    assert len(batch) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 8), st.one_of(st.none(), st.integers(0, 20))),
        min_size=1,
        max_size=8,
    )
)
def test_every_request_gets_its_own_tokens_under_arrivals_and_cancels(
    plans: list[tuple[int, int, int | None]],
) -> None:
    """Each plan: prefill steps, tokens wanted, and the slice at which it is cancelled."""
    batch = Counting()
    tokens = [CancelToken() for _ in plans]
    logs: list[list[int]] = [[] for _ in plans]
    jobs = deque(
        (number, request(batch, logs[number], wanted, tokens[number], prompt))
        for number, (prompt, wanted, _) in enumerate(plans)
    )
    slices = [0] * len(plans)
    while jobs:
        number, job = jobs.popleft()
        if slices[number] == plans[number][2]:
            tokens[number].cancel()
        slices[number] += 1
        try:
            next(job)
        except (StopIteration, Cancelled):
            continue
        jobs.append((number, job))
    for log, token, (_, wanted, _) in zip(logs, tokens, plans, strict=True):
        assert log == list(range(len(log)))
        assert token.requested or len(log) == wanted
    assert len(batch) == 0
