"""Updates are limited by time and by bytes."""

from __future__ import annotations

from mlx_magic.notebook.display.throttle import HEAD_START, INTERVAL, Throttle
from mlx_magic.testing import ManualClock


def test_updates_have_a_minimum_interval() -> None:
    clock = ManualClock()
    throttle = Throttle(clock)
    assert throttle.allows(10, tokens=1)
    throttle.sent(10)
    assert not throttle.allows(10, tokens=2)
    clock.advance(INTERVAL)
    assert throttle.allows(10, tokens=2)


def bytes_sent(tokens: int, tokens_a_second: float) -> int:
    """Stream tokens of four characters each, with updates as often as allowed."""
    clock, total = ManualClock(), 0
    throttle = Throttle(clock)
    for token in range(1, tokens + 1):
        clock.advance(1 / tokens_a_second)
        size = 300
        if throttle.allows(size, token):
            throttle.sent(size)
            total += size + 900
    return total


def test_sent_bytes_are_bounded_and_linear_at_any_speed() -> None:
    for speed in (5, 20, 100, 1000):
        thousand, four_thousand = bytes_sent(1000, speed), bytes_sent(4000, speed)
        assert thousand <= 210_000
        assert four_thousand <= 4 * thousand + HEAD_START


def test_fast_model_is_updated_at_least_ten_times_a_second() -> None:
    assert bytes_sent(1000, 100) / 1200 >= 10 * 10
