"""The thread that keeps a panel up to date."""

from __future__ import annotations

import threading

import pytest

from mlx_magic.notebook.panel.control.update_thread import FAILURES, Updates

WAIT = 10.0


class Scripted:
    """Answers what the script says; tells how often it was asked, and when it ran out."""

    def __init__(self, *more: bool) -> None:
        self.more = list(more)
        self.calls = 0
        self.threads: set[str] = set()
        self.over = threading.Event()

    def __call__(self) -> bool:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        more = self.more.pop(0)
        if not self.more:
            self.over.set()
        return more


def ended(updates: Updates) -> None:
    for thread in threading.enumerate():
        if thread.name == "mlx-magic-panel":
            thread.join(WAIT)
    assert not updates.active


def test_no_thread_runs_before_wake() -> None:
    updates = Updates(lambda: False)
    assert not updates.active


def test_updates_continue_while_needed_and_then_the_thread_ends() -> None:
    script = Scripted(True, True, False)
    updates = Updates(script, interval=0.0)
    updates.wake()
    assert script.over.wait(WAIT)
    ended(updates)
    assert script.calls == 3
    assert script.threads == {"mlx-magic-panel"}


def test_wake_during_the_last_update_is_not_lost() -> None:
    again = threading.Event()
    calls = []

    def update() -> bool:
        calls.append(1)
        if len(calls) == 1:
            updates.wake()
        else:
            again.set()
        return False

    updates = Updates(update, interval=60.0)
    updates.wake()
    assert again.wait(WAIT)
    ended(updates)
    assert len(calls) == 2


def test_updates_can_be_woken_again() -> None:
    first, second = threading.Event(), threading.Event()

    def update() -> bool:
        (second if first.is_set() else first).set()
        return False

    updates = Updates(update)
    updates.wake()
    assert first.wait(WAIT)
    ended(updates)
    updates.wake()
    assert second.wait(WAIT)
    ended(updates)


def test_updates_that_keep_failing_are_logged_and_end_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def update() -> bool:
        raise RuntimeError("no page")

    updates = Updates(update, interval=0.0)
    updates.wake()
    ended(updates)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == (
        ["no page"] * FAILURES
    )


def test_single_failing_update_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    script = Scripted(*[True] * 6, False)

    def update() -> bool:
        more = script()
        if script.calls in (1, 2, 4, 5):
            raise RuntimeError("not now")
        return more

    updates = Updates(update, interval=0.0)
    updates.wake()
    assert script.over.wait(WAIT)
    ended(updates)
    assert script.calls == 7
    assert len(caplog.records) == 4


def test_closed_updater_does_nothing() -> None:
    script = Scripted(False)
    updates = Updates(script)
    updates.close()
    updates.wake()
    assert not updates.active
    assert script.calls == 0
