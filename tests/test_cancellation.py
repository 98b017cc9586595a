"""The token: thrown once, by a person or by the clock."""

from __future__ import annotations

import threading

import pytest

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.testing import ManualClock


def test_nothing_stops_until_somebody_asks() -> None:
    token = CancelToken()
    token.checkpoint()
    assert (token.requested, token.cause, token.requested_at) == (False, None, None)
    token.cancel()
    assert token.requested
    assert token.cause == "cancelled"
    with pytest.raises(Cancelled):
        token.checkpoint()


def test_a_deadline_throws_it_when_somebody_looks() -> None:
    clock = ManualClock(10.0)
    token = CancelToken(deadline=12.0, clock=clock)
    clock.advance(1.9)
    token.checkpoint()
    clock.advance(5)
    assert token.requested
    assert (token.cause, token.requested_at) == ("timeout", 12.0)


def test_the_first_cause_stands() -> None:
    clock = ManualClock(0.0)
    early, late = (CancelToken(deadline=5.0, clock=clock) for _ in range(2))
    clock.advance(1)
    early.cancel()
    clock.advance(9)
    late.cancel()
    assert early.requested
    assert (early.cause, early.requested_at) == ("cancelled", 1.0)
    assert (late.cause, late.requested_at) == ("timeout", 5.0)


def test_waiting_ends_when_it_is_thrown_and_no_later_than_the_deadline() -> None:
    clock = ManualClock(0.0)
    token = CancelToken(deadline=5.0, clock=clock)
    clock.advance(5)
    assert token.wait(1000)
    other = CancelToken()
    threading.Thread(target=other.cancel).start()
    assert other.wait(1000)
    assert not CancelToken().wait(0)
