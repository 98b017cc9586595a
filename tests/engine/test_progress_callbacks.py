"""Observers: at most 20 calls a second, an exact last one, and no harm by failing ones."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.generation import INTERVAL, Generation, Observers, Snapshot
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.testing import ManualClock


def text_chunk(count: int) -> GenerationChunk:
    return GenerationChunk("decode", text=f"{count} ", completion_tokens=count, prompt_tokens=9)


@given(st.lists(st.floats(0, 0.2), max_size=60))
def test_callback_is_called_at_most_twenty_times_a_second(steps: list[float]) -> None:
    clock, times = ManualClock(0.0), []
    observers: Observers[int] = Observers(clock)
    observers.add(lambda _: times.append(clock()))
    for seconds in steps:
        clock.advance(seconds)
        observers.notify(lambda: 0)
    assert all(later - earlier >= INTERVAL for earlier, later in itertools.pairwise(times))
    # None that was due is left out.
    assert bool(times) == bool(steps)


def test_observer_gets_consistent_numbers(generation: Generation, clock: ManualClock) -> None:
    seen: list[Snapshot] = []
    generation.observe(seen.append)
    generation.report(GenerationChunk("prefill", prompt_read=4, prompt_tokens=9))
    for count in range(1, 101):
        clock.advance(0.01)
        generation.report(text_chunk(count))
    generation.finish("stop")
    assert len(seen) <= 2 + 1.0 / INTERVAL
    assert (seen[0].progress.phase, seen[0].prompt_read, seen[0].prompt_tokens) == ("prefill", 4, 9)
    for snapshot in seen[1:]:
        assert len(snapshot.text.split()) == snapshot.completion_tokens
        if snapshot.completion_tokens > 1:
            assert snapshot.generation_tps == pytest.approx(100)
    last = seen[-1]
    assert (last.progress.phase, last.completion_tokens) == ("done", 100)
    assert last.text == generation.future.result().text


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()], ids=repr)
def test_failing_observer_is_removed(
    generation: Generation,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    calls: list[Any] = []

    def fail(snapshot: Snapshot) -> None:
        calls.append(snapshot)
        raise error

    generation.observe(fail)
    with caplog.at_level(logging.ERROR):
        generation.enter("loading")
        clock.advance(1)
        generation.report(text_chunk(1))
        generation.finish("stop")
    assert len(calls) == 1
    assert "observer failed" in caplog.text
    assert generation.future.result().text == "1 "


def test_observer_can_cancel_and_unsubscribe(generation: Generation, clock: ManualClock) -> None:
    seen: list[Snapshot] = []

    def look(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        generation.cancel()

    leave = generation.observe(look)
    generation.enter("loading", "loading")
    assert generation.future.result().finish_reason == "cancelled"
    leave()
    clock.advance(1)
    generation._observers.notify(generation.snapshot, at_end=True)
    assert [each.progress.phase for each in seen] == ["loading", "done"]


def test_snapshots_from_another_thread_are_consistent(generation: Generation) -> None:
    """Text and token count are always consistent."""
    begun, ended = threading.Event(), threading.Event()

    def write() -> None:
        begun.wait()
        for count in range(1, 3000):
            generation.report(text_chunk(count))
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.set()
    while not ended.is_set():
        snapshot = generation.snapshot()
        assert len(snapshot.text.split()) == snapshot.completion_tokens
    writer.join()
