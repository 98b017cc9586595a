"""The cancel token: cancelled once, by the user or by a deadline."""

from __future__ import annotations

import threading

import pytest

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.testing import ManualClock


def test_token_raises_only_after_cancel() -> None:
    token = CancelToken()
    token.checkpoint()
    assert (token.requested, token.cause, token.requested_at) == (False, None, None)
    token.cancel()
    assert token.requested
    assert token.cause == "cancelled"
    with pytest.raises(Cancelled):
        token.checkpoint()


def test_deadline_cancels_the_token_at_the_next_check() -> None:
    clock = ManualClock(10.0)
    token = CancelToken(deadline=12.0, clock=clock)
    clock.advance(1.9)
    token.checkpoint()
    clock.advance(5)
    assert token.requested
    assert (token.cause, token.requested_at) == ("timeout", 12.0)


def test_first_cause_is_kept() -> None:
    clock = ManualClock(0.0)
    early, late = (CancelToken(deadline=5.0, clock=clock) for _ in range(2))
    clock.advance(1)
    early.cancel()
    clock.advance(9)
    late.cancel()
    assert early.requested
    assert (early.cause, early.requested_at) == ("cancelled", 1.0)
    assert (late.cause, late.requested_at) == ("timeout", 5.0)


def test_wait_ends_at_cancel_or_deadline() -> None:
    clock = ManualClock(0.0)
    token = CancelToken(deadline=5.0, clock=clock)
    clock.advance(5)
    assert token.wait(1000)
    other = CancelToken()
    threading.Thread(target=other.cancel).start()
    assert other.wait(1000)
    assert not CancelToken().wait(0)
