"""One request at a time, in order, despite cancellations."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.backends.dispatch import RequestQueue
from mlx_magic.cancellation import Cancelled, CancelToken


def work(turns: RequestQueue, log: list[int], name: int, cancel: CancelToken) -> Generator[None]:
    with turns.queued() as turn:
        yield from turn.wait(cancel)
        log.append(name)
        for _ in range(2):
            yield
            cancel.checkpoint()
        log.append(name)


@given(
    st.lists(st.integers(min_value=0, max_value=12), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_cancellations_keep_the_order_of_other_requests(
    cancelled_at: list[int], random: object
) -> None:
    turns, log = RequestQueue(), list[int]()
    tokens = [CancelToken() for _ in cancelled_at]
    jobs = {n: work(turns, log, n, token) for n, token in enumerate(tokens)}
    slices = 0
    while jobs:
        for n in list(jobs):
            if slices == cancelled_at[n]:
                tokens[n].cancel()
            try:
                next(jobs[n])
            except (StopIteration, Cancelled):
                del jobs[n]
        slices += 1
    assert len(turns) == 0
    firsts = list(dict.fromkeys(log))
    assert firsts == sorted(firsts)
    # No request starts before the previous one has ended or left.
    assert [name for at, name in enumerate(log) if at == 0 or log[at - 1] != name] == firsts


def test_wait_ends_if_no_turn_is_needed_anymore() -> None:
    turns, free = RequestQueue(), False
    with turns.queued() as first, turns.queued() as second:
        with pytest.raises(StopIteration):
            next(first.wait(CancelToken()))
        waiting = second.wait(CancelToken(), unless=lambda: free)
        next(waiting)
        free = True
        with pytest.raises(StopIteration):
            next(waiting)
