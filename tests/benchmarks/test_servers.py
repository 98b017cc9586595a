from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import MemoryWatch, Process
from benchmarks.servers import Server, free_port, read_events
from benchmarks.workload import Ask


def event(text: str | None = None, **more: Any) -> bytes:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return json.dumps({"choices": choices, **more}).encode()


def test_stream_is_read_with_usage_and_peak_memory() -> None:
    usage = {"prompt_tokens": 70, "completion_tokens": 5}
    events = [
        (0.1, event("")),
        (0.25, event(" a")),
        (0.5, event("b ")),
        (0.75, event(usage=usage, timings={"peak_memory": 0.5})),
    ]
    answer, peak = read_events(events, 9)
    assert (answer.first, answer.last, answer.text) == (0.25, 0.5, "ab")
    assert (answer.tokens, answer.prompt_tokens, peak) == (5, 70, 500_000_000)


def test_server_without_usage_counts_as_max_tokens() -> None:
    answer, peak = read_events([(1.0, event("whole answer"))], 64)
    assert (answer.tokens, answer.prompt_tokens, peak) == (64, 0, 0)


def test_a_stream_without_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="without any text"):
        read_events([(0.1, event(""))], 9)


def test_an_error_in_a_stream_is_an_error() -> None:
    events = [(0.1, event("a")), (0.2, event(error={"message": "no batch"}))]
    with pytest.raises(ValueError, match="no batch"):
        read_events(events, 9)


class Endpoint(BaseHTTPRequestHandler):
    """Answers once the expected number of requests is waiting."""

    together = threading.Barrier(4)
    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if body["max_tokens"] == 0:
            self.send_error(400, "too few")
            return
        self.together.wait(30)
        self.send_response(200)
        self.end_headers()
        words = body["messages"][0]["content"][1]["text"]
        self.wfile.write(b"data: " + event(words) + b"\n\ndata: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[tuple[Server, Process]]:
    Endpoint.bodies = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    # Stands for the server's process; runs until it is closed.
    process = Process([sys.executable, "-c", "import sys; sys.stdin.read()"], tmp_path, {})
    yield Server("fake", process, server.server_port, "/v1", "m", inline=True), process
    process.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_requests_are_sent_at_once(endpoint: tuple[Server, Process], tmp_path: Path) -> None:
    server, _ = endpoint
    image = tmp_path / "a.png"
    image.write_bytes(b"pixels")
    server.wait()
    burst = server.answer([Ask(f"q{n}", str(image)) for n in range(4)], 7)
    assert burst.texts == ["q0", "q1", "q2", "q3"]
    assert burst.wall >= burst.last_first > 0
    body = Endpoint.bodies[0]
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == b"pixels"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.0)


def test_a_refusal_is_an_error(endpoint: tuple[Server, Process], tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"pixels")
    with pytest.raises(RuntimeError, match="fake: status 400"):
        endpoint[0].answer([Ask("q", str(image))], 0)


def test_server_that_exits_reports_its_output(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path, {})
    with pytest.raises(RuntimeError, match="no such model"):
        Server("fake", process, free_port(), "/v1", "m").wait()
    process.close()


def test_process_memory_is_measured(endpoint: tuple[Server, Process]) -> None:
    watch = MemoryWatch([endpoint[0]])
    seen = threading.Event()
    with watch:
        while not watch.most["fake"]:
            seen.wait(0.01)
    assert watch.most["fake"] > 1_000_000
