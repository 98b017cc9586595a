"""Servers for the comparison: mlx-vlm's own, and mlx-manager from PyPI."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import OTHERS, PATIENCE, Process
from benchmarks.workload import Answer, Ask, Burst

# Servers end with this process, and use our BLAS, because the wheel's own is many times slower
# (see `platform.prepare`).
LAST_OURS = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
"""
SERVER = f"""{LAST_OURS}
from mlx_magic.backends.device import platform as device
device.prepare()
from mlx_vlm.server import main
sys.argv[0] = "mlx_vlm.server"
main()
"""
MANAGER = f"""{LAST_OURS}
from mlx_magic.backends.device import platform as device
device.prepare()
import uvicorn
from mlx_manager.mlx_server.main import create_app
uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""
MANAGED = "benchmark/model"


class Server:
    """A server with OpenAI's streaming endpoint, on this machine only.

    Parameters
    ----------
    name : str
    process : Process
    port : int
    path : str
        Path of the endpoint.
    model : str
        Its name in requests.
    inline : bool
        Whether images are sent in the request; otherwise by their path.
    """

    def __init__(
        self, name: str, process: Process, port: int, path: str, model: str, *, inline: bool = False
    ) -> None:
        self.name = name
        self._process = process
        self.pid = process.process.pid
        self._port = port
        self._path = path
        self._model = model
        self._inline = inline

    def wait(self) -> None:
        """Wait until it accepts requests."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._process.process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise self._process.failed(f"{self.name} did not start")

    def close(self) -> None:
        """End it."""
        self._process.close()

    def answer(self, asks: Sequence[Ask], max_tokens: int) -> Burst:
        """Send all requests at once, each on its own connection and thread. See `Peer`."""
        bodies = [self._body(ask, max_tokens) for ask in asks]
        events: list[list[tuple[float, bytes]]] = [[] for _ in asks]
        failures: list[BaseException] = []

        def send(body: bytes, into: list[tuple[float, bytes]]) -> None:
            try:
                self._send(body, began, into)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=send, args=pair, daemon=True)
            for pair in zip(bodies, events, strict=True)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - began
        if failures:
            raise self._process.failed(f"{self.name}: {failures[0]}") from failures[0]
        # Parsed only now: until the last token the processor belongs to the server.
        try:
            read = [read_events(held, max_tokens) for held in events]
        except ValueError as error:
            raise self._process.failed(f"{self.name}: {error}") from error
        return Burst(wall, tuple(one for one, _ in read), max(peak for _, peak in read))

    def _body(self, ask: Ask, max_tokens: int) -> bytes:
        url = ask.image
        if self._inline:
            held = base64.b64encode(Path(ask.image).read_bytes()).decode()
            url = f"data:image/png;base64,{held}"
        body = {
            "model": self._model,
            "messages": ask.messages({"type": "image_url", "image_url": {"url": url}}),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(body).encode()

    def _send(self, body: bytes, began: float, into: list[tuple[float, bytes]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read(500)!r}")
            while line := response.readline():
                if line.startswith(b"data: {"):
                    into.append((time.perf_counter() - began, line[6:]))
        finally:
            connection.close()


def read_events(events: Sequence[tuple[float, bytes]], max_tokens: int) -> tuple[Answer, int]:
    """Read the events of a stream; returns the answer, and MLX's peak in bytes (0: unknown).

    Parameters
    ----------
    events : sequence of (float, bytes)
        Times in seconds, and JSON.
    max_tokens : int
        Number of tokens if the peer does not report it, as models here never end an answer.

    Raises
    ------
    ValueError
        There was no text, or the server reported an error.
    """
    times, parts, tokens, prompt, peak = [], [], max_tokens, 0, 0.0
    for at, line in events:
        held = json.loads(line)
        if error := held.get("error"):
            raise ValueError(f"A stream ended with an error: {str(error)[:500]}")
        for choice in held.get("choices") or ():
            text = (choice.get("delta") or {}).get("content")
            if text:
                times.append(at)
                parts.append(text)
        usage = held.get("usage") or {}
        tokens = int(usage.get("completion_tokens") or usage.get("output_tokens") or tokens)
        prompt = int(usage.get("prompt_tokens") or usage.get("input_tokens") or prompt)
        for numbers in (usage, held.get("timings") or {}):
            gigabytes = numbers.get("peak_memory_gb") or numbers.get("peak_memory") or 0.0
            peak = max(peak, float(gigabytes))
    if not times:
        raise ValueError("A stream ended without any text.")
    text = "".join(parts).strip()
    return Answer.of(times, tokens, text, prompt_tokens=prompt), int(peak * 1e9)


def vlm_server(model: Path, folder: Path) -> Server:
    """Start mlx-vlm's server with its defaults; the model is loaded before the first request."""
    port = free_port()
    command = [sys.executable, "-c", SERVER, "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "ERROR"]
    process = Process(command, folder, OTHERS)
    return Server("server", process, port, "/v1/chat/completions", str(model))


def mlx_manager(model: Path, folder: Path, python: Path) -> Server:
    """Start mlx-manager's server, with its own Hub cache, as it finds models only there.

    Parameters
    ----------
    model, folder : Path
    python : Path
        Interpreter of an environment with mlx-manager.
    """
    home = folder / "manager"
    cached = home / ".cache/huggingface/hub" / f"models--{MANAGED.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(model, cached / "snapshots" / ("0" * 40))
    port = free_port()
    environment = {"HOME": str(home), "MLX_SERVER_AVAILABLE_MODELS": json.dumps([MANAGED])}
    environment |= {"HF_HUB_CACHE": str(cached.parent), "LOGFIRE_SEND_TO_LOGFIRE": "false"}
    process = Process([str(python), "-c", MANAGER, str(port)], folder, environment | OTHERS)
    return Server("mlx-manager", process, port, "/chat/completions", MANAGED, inline=True)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
