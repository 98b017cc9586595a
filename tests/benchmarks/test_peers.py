"""Compared processes run on the same cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import peers

WORK = """
import sys, threading
for _ in range(3):
    threading.Thread(target=sys.stdin.read, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@given(st.integers(0, 10**6), st.sets(st.integers(0, 300), min_size=1, max_size=200))
def test_each_turn_gets_a_few_available_cores(turn: int, there: set[int]) -> None:
    held = sorted(there)
    cores = peers.cores_of(turn, held)
    assert set(cores) <= there
    assert len(cores) == (peers.CORES if len(held) >= 2 * peers.CORES else len(held))


def test_turns_rotate_over_all_cores() -> None:
    turns = [peers.cores_of(turn, range(16)) for turn in range(8)]
    assert sorted(core for cores in turns[:4] for core in cores) == list(range(16))
    assert turns[4:] == turns[:4]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A process with threads."""
    command = [sys.executable, "-c", WORK]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux can be told so")
def test_every_thread_is_pinned_and_released_afterwards(
    process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.sched_getaffinity(0)
    chosen = min(there)
    monkeypatch.setattr(peers, "cores_of", lambda turn, held: [chosen])
    peer: Any = SimpleNamespace(name="one", pid=process.pid)
    with peers.on_cores([peer], 0):
        assert places(process) == [{chosen}] * 4
    assert places(process) == [there] * 4


def places(process: subprocess.Popen[str]) -> list[set[int]]:
    threads = psutil.Process(process.pid).threads()
    return [os.sched_getaffinity(thread.id) for thread in threads]


def test_process_that_has_exited_is_ignored(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    peer: Any = SimpleNamespace(name="one", pid=process.pid)
    with peers.on_cores([peer], 0):
        pass
