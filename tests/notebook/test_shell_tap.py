"""The tap sees authentic clicks and forwards every message unchanged."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session

from mlx_magic.interrupts import deferred
from mlx_magic.notebook.kernel.shell_tap import ShellTap

CLICK = {"method": "custom", "content": {"event": "click"}}


class Stream:
    """What the tap uses of a ZMQStream."""

    def __init__(self) -> None:
        self.forwarded: list[list[zmq.Frame]] = []
        self.original: Callable[[list[zmq.Frame]], object] = self.forward
        self._recv_callback: Callable[[list[zmq.Frame]], object] = self.original
        self._recv_copy = False
        self.io_loop = SimpleNamespace(add_callback=lambda change: self.scheduled.append(change))
        self.scheduled: list[Callable[[], None]] = []
        self.on_flush: Callable[[], object] = lambda: None

    def forward(self, frames: list[zmq.Frame]) -> object:
        self.forwarded.append(frames)
        return "forwarded"

    def on_recv(self, callback: Callable[[list[zmq.Frame]], object], *, copy: bool) -> None:
        self._recv_callback, self._recv_copy = callback, copy

    def flush(self) -> None:
        self.on_flush()


class Bench:
    """A fake kernel with a tap on it, and a client that signs its messages."""

    def __init__(self, *, threaded: bool = False) -> None:
        self.stream = Stream()
        self.client = Session(key=b"secret")
        self.kernel = SimpleNamespace(shell_stream=self.stream, session=Session(key=b"secret"))
        if threaded:
            self.kernel.shell_channel_thread = object()
        self.tap = ShellTap(self.kernel)
        self.clicks: list[str] = []

    def watching(self, comm_id: str = "button") -> Bench:
        self.tap.install()
        self.tap.cell_began()
        self.tap.add(comm_id, lambda: self.clicks.append(comm_id))
        return self

    def frames(self, data: Any = CLICK, **changes: Any) -> list[zmq.Frame]:
        content = {"comm_id": changes.get("comm_id", "button"), "data": data}
        message = self.client.msg(changes.get("msg_type", "comm_msg"), content)
        session = changes.get("session", self.client)
        return [zmq.Frame(part) for part in session.serialize(message, ident=b"client")]

    def receive(self, frames: list[zmq.Frame]) -> object:
        return self.stream._recv_callback(frames)


@pytest.fixture
def bench() -> Bench:
    return Bench().watching()


def test_click_is_seen_and_forwarded_unchanged(bench: Bench) -> None:
    frames = bench.frames()
    assert bench.receive(frames) == "forwarded"
    assert bench.clicks == ["button"]
    assert bench.stream.forwarded == [frames]


def test_kernel_can_still_read_the_message(bench: Bench) -> None:
    frames = bench.frames()
    bench.receive(frames)
    _, parts = bench.kernel.session.feed_identities(frames, copy=False)
    assert bench.kernel.session.deserialize(parts, copy=False)["content"]["data"] == CLICK


def test_click_already_read_by_the_kernel_is_not_handled_twice(bench: Bench) -> None:
    frames = bench.frames()
    _, parts = bench.kernel.session.feed_identities(frames, copy=False)
    bench.kernel.session.deserialize(parts, copy=False)
    bench.receive(frames)
    assert bench.clicks == []


def test_forged_click_is_ignored(bench: Bench) -> None:
    frames = bench.frames(session=Session(key=b"guessed"))
    assert bench.receive(frames) == "forwarded"
    assert bench.clicks == []


@pytest.mark.parametrize(
    "changes",
    [
        {"comm_id": "another"},
        {"msg_type": "comm_close"},
        {"msg_type": "execute_request"},
        {"data": {"method": "update", "state": {"description": "click"}}},
        {"data": {"method": "custom", "content": {"event": "submit", "x": "click"}}},
        {"data": {"method": "custom", "content": ["click"]}},
        {"data": ["click"]},
        {"data": None},
    ],
)
def test_other_messages_are_only_forwarded(bench: Bench, changes: dict[str, Any]) -> None:
    assert bench.receive(bench.frames(**changes)) == "forwarded"
    assert bench.clicks == []


@given(parts=st.lists(st.binary(max_size=40) | st.sampled_from([b"<IDS|MSG>", b"comm_msg"])))
def test_any_message_is_forwarded(parts: list[bytes]) -> None:
    bench = Bench().watching()
    frames = [zmq.Frame(part) for part in parts]
    assert bench.receive(frames) == "forwarded"
    assert (bench.clicks, bench.stream.forwarded) == ([], [frames])


def test_failing_callback_is_logged_and_the_message_forwarded(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    bench.tap.add("button", fail)
    with caplog.at_level(logging.ERROR):
        assert bench.receive(bench.frames()) == "forwarded"
    assert "The callback of a click failed." in caplog.text


def test_click_before_the_button_is_watched_counts(bench: Bench) -> None:
    bench.receive(bench.frames(comm_id="early"))
    bench.tap.add("early", lambda: bench.clicks.append("early"))
    assert bench.clicks == ["early"]


def test_early_click_of_a_finished_cell_is_forgotten(bench: Bench) -> None:
    bench.receive(bench.frames(comm_id="early"))
    bench.tap.cell_ended()
    bench.tap.cell_began()
    bench.tap.add("early", lambda: bench.clicks.append("early"))
    assert bench.clicks == []


def test_discarded_button_is_forgotten(bench: Bench) -> None:
    bench.tap.discard("button")
    bench.tap.discard("button")
    bench.receive(bench.frames())
    assert bench.clicks == []


def test_no_message_is_read_between_cells(bench: Bench) -> None:
    bench.tap.cell_ended()
    bench.kernel.session = None  # reading would fail
    assert bench.receive(bench.frames()) == "forwarded"
    assert bench.clicks == []


def test_second_install_has_no_effect_and_remove_restores(bench: Bench) -> None:
    bench.tap.install()
    bench.receive(bench.frames())
    assert bench.clicks == ["button"]
    bench.tap.remove()
    assert bench.stream._recv_callback is bench.stream.original
    assert bench.stream._recv_copy is False
    bench.tap.remove()
    assert bench.stream._recv_callback is bench.stream.original


def test_later_wrapper_of_the_callback_survives_remove(bench: Bench) -> None:
    ours = bench.stream._recv_callback

    def theirs(frames: list[zmq.Frame]) -> object:
        return ours(frames)

    bench.stream._recv_callback = theirs
    bench.tap.remove()
    assert bench.stream._recv_callback is theirs
    assert bench.receive(bench.frames()) == "forwarded"


def test_stream_of_another_thread_is_patched_in_that_thread() -> None:
    bench = Bench(threaded=True).watching()
    assert bench.stream._recv_callback is bench.stream.original
    bench.stream.scheduled.pop()()
    assert bench.receive(bench.frames()) == "forwarded"
    assert bench.clicks == ["button"]


def test_flush_receives_only_on_the_reading_thread() -> None:
    flushes: list[str] = []
    for threaded in (False, True):
        bench = Bench(threaded=threaded)
        bench.stream.on_flush = lambda: flushes.append("flush")
        bench.tap.flush()
    assert flushes == ["flush"]


def test_interrupt_during_a_flush_waits_for_its_end(bench: Bench) -> None:
    steps: list[str] = []

    def flush() -> None:
        signal.raise_signal(signal.SIGINT)
        steps.append("received")

    bench.stream.on_flush = flush
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        bench.tap.flush()
    assert steps == ["received"]
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_during_a_flush_is_seen_by_the_deferred_block(bench: Bench) -> None:
    came: list[bool] = []
    bench.stream.on_flush = lambda: signal.raise_signal(signal.SIGINT)

    def guarded() -> None:
        with deferred() as interrupt:
            bench.tap.flush()
            came.append(interrupt.came)

    with pytest.raises(KeyboardInterrupt):
        guarded()
    assert came == [True], "and what follows the flush is done"


def test_other_kernels_are_not_supported() -> None:
    bench = Bench()
    assert ShellTap.supported(bench.kernel)
    assert not ShellTap.supported(None)
    assert not ShellTap.supported(SimpleNamespace(shell_stream=bench.stream, session=None))
    bench.stream._recv_copy = True
    assert not ShellTap.supported(bench.kernel)
    del bench.stream._recv_callback
    assert not ShellTap.supported(bench.kernel)
