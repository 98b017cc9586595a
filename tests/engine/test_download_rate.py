"""The rate of a download counts new bytes only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.download_rate import FEWEST, WINDOW, DownloadRate, duration, seconds_left
from mlx_magic.model_pool.model_info import Load
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.testing import ManualClock

MB = 10**6


def after(*reports: tuple[float, int], total: int = 10**9) -> DownloadRate:
    speed = DownloadRate()
    for now, done in reports:
        speed.report(now, done, total)
    return speed


def test_no_rate_before_the_first_bytes() -> None:
    assert DownloadRate().rate(5.0) == 0
    assert after((0.0, 700 * MB)).rate(3.0) == 0


def test_bytes_present_at_the_start_do_not_count() -> None:
    assert after((0.0, 700 * MB), (2.0, 704 * MB)).rate(2.0) == 2 * MB


def test_no_rate_in_the_first_moments() -> None:
    speed = after((0.0, 0), (0.1, MB))
    assert speed.rate(0.1) == 0
    assert speed.rate(0.5) == 2 * MB


def test_rate_covers_only_the_last_seconds() -> None:
    slow = [(float(second), second * MB) for second in range(30)]
    fast = [(30.0 + second, 30 * MB + second * 5 * MB) for second in range(12)]
    assert after(*slow, *fast).rate(41.0) == 5 * MB


def test_rate_falls_while_nothing_arrives() -> None:
    speed = after((0.0, 0), (1.0, 6 * MB))
    assert speed.rate(1.0) == 6 * MB
    assert speed.rate(6.0) == MB


def test_rare_reports_of_a_slow_download_give_a_rate() -> None:
    assert after(*[(30.0 * i, i * 3 * MB) for i in range(9)]).rate(240.0) == pytest.approx(1e5)


@pytest.mark.parametrize("anew", [(2.0, 900 * MB, 2 * 10**9), (2.0, MB, 10**9)])
def test_new_total_or_lower_count_resets_the_rate(anew: tuple[float, int, int]) -> None:
    speed = after((0.0, 0), (1.0, 6 * MB))
    speed.report(*anew)
    assert speed.rate(2.5) == 0
    speed.report(3.0, anew[1] + 4 * MB, anew[2])
    assert speed.rate(3.0) == 4 * MB


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**9)), max_size=60))
def test_rate_is_never_negative_and_history_is_bounded(steps: list[tuple[float, int]]) -> None:
    speed, now, done = DownloadRate(), 0.0, 0
    for wait, size in steps:
        now, done = now + wait, done + size
        speed.report(now, done, 10**12)
        assert speed.rate(now) >= 0
        inside = [at for at, _ in speed._reports if at > now - WINDOW]
        assert len(speed._reports) <= max(len(inside) + 1, FEWEST)


def test_remaining_time_is_estimated() -> None:
    assert seconds_left(25, 100, 25.0) == 3.0
    assert seconds_left(25, 100, 0.0) is None
    assert seconds_left(25, 0, 25.0) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "1 s"), (3.2, "4 s"), (10.0, "10 s"), (41.0, "50 s"), (59.9, "60 s"), (60.0, "1 min"),
     (121.0, "3 min"), (3600.0, "1 h 0 min"), (7800.0, "2 h 10 min"), (1e6, "more than a day")],
)  # fmt: skip
def test_durations_are_formatted_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_download_progress_shows_bytes_rate_and_remaining_time() -> None:
    clock = ManualClock()
    load = Load("org/name", clock=clock)
    load.enter("downloading", "downloading org/name")
    load.advance(100 * MB, 2_000 * MB)
    assert phase_line(load.progress) == "downloading org/name · 100 MB of 2.0 GB"
    clock.advance(2)
    load.advance(150 * MB, 2_000 * MB)
    assert phase_line(load.progress) == (
        "downloading org/name · 150 MB of 2.0 GB · 25 MB/s · 2 min left"
    )
    clock.advance(2)  # nothing came
    assert phase_line(load.progress).endswith("· 12 MB/s · 3 min left")
    load.advance(2_000 * MB, 2_000 * MB)
    assert phase_line(load.progress) == "downloading org/name · 2.0 GB of 2.0 GB"


def test_load_from_disk_shows_only_bytes() -> None:
    clock = ManualClock()
    load = Load("m", clock=clock)
    load.enter("loading")
    load.advance(1, 10 * MB, "loading weights")
    clock.advance(2)
    load.advance(5 * MB, 10 * MB, "loading weights")
    assert phase_line(load.progress) == "loading weights · 5.0 MB of 10 MB"
