"""Forks during generation: the answer continues and the fork does not wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator

import pytest

from mlx_magic import forks
from mlx_magic.backends.device import openblas
from mlx_magic.engine.engine import Engine

FORKING = """
import ctypes.util, json, os, pty, subprocess, sys, threading, time
import numpy as np

build, at_rest, count = sys.argv[1:]
if build == "opencv":
    ctypes.util.find_library = lambda name: None
import mlx_magic
from mlx_magic import forks
from mlx_magic.backends.device import platform as device
if at_rest == "never":
    forks.LONGEST = 0.0

def fork():
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)

def terminal():
    process, end = pty.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    os.close(end)

def before_exec():
    subprocess.run(["true"], preexec_fn=lambda: None)

rng = np.random.default_rng(0)
images = [rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(6)]
def answers():
    return [
        str(mlx_magic.ask(f"{at} " * 300 + "What is it?", image, max_tokens=6, temperature=0.0))
        for at, image in enumerate(images)
    ]

expected = answers()
if build == "opencv":
    assert "opencv" in str(device.blas().loaded)
# What is kept of the images and prompts would leave nothing to multiply.
mlx_magic.pool.unload("demo")
mlx_magic.ask("Hi", max_tokens=1)
found, took, stop = [], [], threading.Event()
asking = threading.Thread(target=lambda: (found.extend(answers()), stop.set()), daemon=True)
asking.start()
def forking():
    for at in range(int(count)):
        began = time.perf_counter()
        (fork, terminal, before_exec)[at % 3]()
        took.append(time.perf_counter() - began)
other = threading.Thread(target=forking, daemon=True)
other.start()
forking()
other.join(60)
asking.join(60)
child = os.fork()
if child == 0:
    try:
        mlx_magic.ask("Hi")
    except mlx_magic.errors.MlxMagicError as error:
        os._exit(7 if "spawn" in str(error) else 1)
    os._exit(2)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps([found == expected, len(took), max(took), status]))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is used on Linux only")
@pytest.mark.parametrize(("build", "at_rest"), [("debian", "soon"), ("opencv", "never")])
def test_generation_continues_after_any_number_of_forks(build: str, at_rest: str) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, build, at_rest, "15"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    same, forked, _, child = json.loads(found.stdout.splitlines()[-1])
    assert (same, forked, child) == (True, 30, 7)


@pytest.fixture
def engine() -> Generator[Engine, None, None]:
    settled: list[threading.Thread] = []
    made = Engine(settle=lambda: settled.append(threading.current_thread()))
    made.settled = settled  # type: ignore[attr-defined]
    yield made
    made.close()


def test_thread_pauses_between_slices_and_resumes(engine: Engine) -> None:
    slices: list[int] = []
    begun, enough = threading.Event(), threading.Event()

    def steps() -> Generator[None, None, None]:
        while not enough.is_set():
            slices.append(1)
            begun.set()
            yield

    engine.submit(steps(), lambda error: None)
    assert begun.wait(10)
    assert engine.pause(10)
    at_rest = len(slices)
    (thread,) = engine.settled  # type: ignore[attr-defined]
    assert thread.name == "mlx-magic"
    assert len(slices) == at_rest
    engine.resume()
    while len(slices) == at_rest:
        begun.wait(0.01)
    enough.set()


def test_fork_does_not_wait_for_a_long_step(engine: Engine) -> None:
    begun, gate = threading.Event(), threading.Event()

    def steps() -> Generator[None, None, None]:
        begun.set()
        assert gate.wait(10)
        yield

    engine.submit(steps(), lambda error: None)
    assert begun.wait(10)
    assert not engine.pause(0.01)
    engine.resume()
    gate.set()
    assert engine.call(lambda: 3).result(10) == 3


def test_fork_on_the_inference_thread_does_not_deadlock(engine: Engine) -> None:
    def rested() -> bool:
        found = engine.pause(10)
        engine.resume()
        return found

    assert engine.call(rested).result(10)


def test_concurrent_forks_all_find_the_thread_paused(engine: Engine) -> None:
    engine.call(lambda: None).result(10)
    found: list[bool] = []

    def fork() -> None:
        found.append(engine.pause(10))
        engine.resume()

    threads = [threading.Thread(target=fork) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 8
    assert engine.call(lambda: 4).result(10) == 4


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_openblas_is_idle_in_a_fork_during_a_running_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    class Busy:
        def pause(self, seconds: float) -> bool:
            said.append("rest")
            return False

        def resume(self) -> None:
            said.append("go on")

    def noted(word: str) -> Callable[[], None]:
        return lambda: said.append(word)

    monkeypatch.setattr(openblas, "pause", noted("openblas rests"))
    monkeypatch.setattr(openblas, "resume", noted("openblas goes on"))
    busy = Busy()
    forks.guard(busy)
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    assert said == ["rest", "openblas rests", "openblas goes on", "go on"]
