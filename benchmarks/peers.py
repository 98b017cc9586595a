"""The compared processes, each with its own model; see also `benchmarks.servers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]

from benchmarks.machine import ROOT
from benchmarks.workload import Ask, Burst
from mlx_magic.backends.device import openblas

PATIENCE = 600.0
"""Seconds that a start or an answer may take: a GPU's first one compiles its kernels."""

CORES = 4
"""Cores that a peer gets alone: one to decode, and the others for what is done beside it."""


# OpenBLAS's default, unless the user has set it: only ours lets idle threads rest sooner.
OTHERS = {openblas.BUSY_WAIT[0]: os.environ.get(openblas.BUSY_WAIT[0], "26")}


class Peer(Protocol):
    """A process that answers questions.

    Attributes
    ----------
    name : str
    pid : int
        Its process.
    """

    name: str
    pid: int

    def wait(self) -> None:
        """Wait until it can answer."""

    def answer(self, asks: Sequence[Ask], max_tokens: int) -> Burst:
        """Answer concurrent questions with greedy decoding."""

    def close(self) -> None:
        """End it."""


class Process:
    """A process that is ended together with its child processes.

    Parameters
    ----------
    command : list of str
    folder : Path
        Folder for its log.
    environment : dict
        Variables added to ours.
    **pipes
        Arguments of `subprocess.Popen`.
    """

    def __init__(
        self, command: list[str], folder: Path, environment: dict[str, str], **pipes: Any
    ) -> None:
        descriptor, log = tempfile.mkstemp(suffix=".log", dir=folder)
        self._log = Path(log)
        more = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with os.fdopen(descriptor, "wb") as errors:
            # The closed pipe tells the process that we have ended, for whatever reason.
            pipes = {"stdin": subprocess.PIPE, "stdout": errors, **pipes}
            self.process = subprocess.Popen(
                command, env={**os.environ, **more, **environment}, stderr=errors, **pipes
            )

    def failed(self, what: str) -> RuntimeError:
        """Return an error with the last lines of the log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return RuntimeError("\n".join([f"{what}; it wrote last:", *lines[-15:]]))

    def close(self) -> None:
        """End it."""
        self.process.kill()
        # Leaving the context closes the pipes and waits.
        with self.process:
            pass


class Worker:
    """A peer of `benchmarks.ways` in a process, with JSON lines to and from it.

    Parameters
    ----------
    name : str
        Name of the peer.
    model : Path
    folder : Path
        Folder for its log.
    root : Path
        The checkout that it runs.
    """

    def __init__(self, name: str, model: Path, folder: Path, root: Path = ROOT) -> None:
        self.name = name
        self._process = Process(
            [sys.executable, "-m", "benchmarks.ways", name, str(model)],
            folder,
            {"PYTHONPATH": str(root), **({} if name == "ours" else OTHERS)},
            # The first place where Python looks for modules.
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.process.pid

    def wait(self) -> None:
        """Wait until its model is loaded."""
        self._read()

    def answer(self, asks: Sequence[Ask], max_tokens: int) -> Burst:
        """Answer questions. See `Peer`."""
        writer = self._process.process.stdin
        assert writer is not None
        order = {"asks": [asdict(ask) for ask in asks], "max_tokens": max_tokens}
        writer.write(json.dumps(order) + "\n")
        writer.flush()
        return Burst.from_json(self._read())

    def load_again(self, cancel_after: float | None = None) -> dict[str, float]:
        """Load its model again. See `benchmarks.ways.Ours.load_again`."""
        writer = self._process.process.stdin
        assert writer is not None
        writer.write(json.dumps({"cancel_after": cancel_after}) + "\n")
        writer.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        reader = self._process.process.stdout
        assert reader is not None
        line = reader.readline()
        if not line:
            raise self._process.failed(f"The process of {self.name!r} ended")
        held: dict[str, Any] = json.loads(line)
        return held

    def close(self) -> None:
        """End it."""
        self._process.close()


@contextmanager
def running(starts: Sequence[Callable[[], Peer]]) -> Iterator[list[Peer]]:
    """Start peers concurrently, wait for all, and end them afterwards."""
    with ExitStack() as stack:
        peers = []
        for start in starts:
            peers.append(start())
            stack.callback(peers[-1].close)
        for peer in peers:
            peer.wait()
        yield peers


@contextmanager
def resting(peers: Sequence[Peer], but: Peer) -> Iterator[None]:
    """Suspend all peers but one, because an idle server still wakes up repeatedly."""
    processes = [process for peer in peers if peer is not but for process in _processes(peer)]
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _processes(peer: Peer) -> list[psutil.Process]:
    """Return a peer's process and its child processes."""
    parent = psutil.Process(peer.pid)
    return [parent, *parent.children(recursive=True)]


def cores_of(turn: int, there: Sequence[int]) -> list[int]:
    """Choose a few cores for a turn; all cores are used in the course of the turns.

    Parameters
    ----------
    turn : int
    there : sequence of int
        The cores of this machine.
    """
    count = len(there) // CORES
    if count < 2:
        return list(there)
    at = turn % count * CORES
    return list(there[at : at + CORES])


@contextmanager
def on_cores(peers: Sequence[Peer], turn: int) -> Iterator[None]:
    """Run the peers on the same few cores, if the system supports it.

    On an H100's host an answer of any peer took about 3.3 or about 4.8 ms per token, and seldom
    anything between, as if some cores were slower than others. Pairs have the same cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    there = sorted(os.sched_getaffinity(0))
    _pin(peers, cores_of(turn, there))
    try:
        yield
    finally:
        _pin(peers, there)


def _pin(peers: Sequence[Peer], cores: Sequence[int]) -> None:
    """Pin all threads of the peers and of their child processes to these cores."""
    for peer in peers:
        with suppress(psutil.NoSuchProcess):
            for process in _processes(peer):
                _pin_threads(process, cores)


def _pin_threads(process: psutil.Process, cores: Sequence[int]) -> None:
    # A process or a thread may have ended meanwhile.
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


class MemoryWatch:
    """Peak memory of processes while it runs.

    Parameters
    ----------
    peers : sequence of Peer

    Attributes
    ----------
    most : dict
        Resident bytes, by name, without the GPU's own memory.
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._processes = {peer.name: psutil.Process(peer.pid) for peer in peers}
        self.most = dict.fromkeys(self._processes, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for name, process in self._processes.items():
                self.most[name] = max(self.most[name], process.memory_info().rss)
