"""What a panel shows while something runs: a thread with its updates, and the status line."""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Sequence

from mlx_magic.engine.generation import Generation
from mlx_magic.notebook.display import formulas, sanitize, throttle
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.notebook.kernel import click_routing
from mlx_magic.notebook.panel.state.model_choices import ModelChoice
from mlx_magic.session import Session

INTERVAL = throttle.INTERVAL + 0.003
"""Seconds between two updates: about 12 a second.

Slightly more than the throttle's interval: with less, every other update would send nothing.
"""

FAILURES = 3
"""Failed updates in a row after which the thread ends; the next `wake` starts a new one."""

_log = logging.getLogger(__name__)


class Updates:
    """Calls `update` until it returns False; see `wake`.

    Parameters
    ----------
    update : callable
        Updates the view; returns whether to call it again.
    interval : float
        Seconds between two calls, unless woken.
    """

    def __init__(self, update: Callable[[], bool], *, interval: float = INTERVAL) -> None:
        self._update = update
        self._interval = interval
        self._lock = threading.Lock()
        self._requested = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._context = click_routing.thread_context()

    def wake(self) -> None:
        """Request an update; quick, and safe from any thread."""
        with self._lock:
            if self._closed:
                return
            self._requested.set()
            if self._thread is None:
                # A copy, as the previous thread may still be inside its context.
                run = self._context.copy().run
                self._thread = threading.Thread(
                    target=run, args=(self._run,), name="mlx-magic-panel", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Stop updating."""
        with self._lock:
            self._closed = True
            self._requested.set()

    @property
    def active(self) -> bool:
        """Whether the thread is running."""
        return self._thread is not None

    def _run(self) -> None:
        failed = 0
        while True:
            self._requested.clear()
            try:
                call_again = not self._closed and self._update()
                failed = 0
            except Exception:
                # Retried: a transient failure must not stop the stream of an answer.
                _log.exception("A panel could not be brought up to date.")
                failed += 1
                call_again = failed < FAILURES
            if not call_again:
                with self._lock:
                    # A request that arrived meanwhile keeps the thread running.
                    if self._closed or not self._requested.is_set():
                        self._thread = None
                        return
            # Several requests within the interval are one update.
            self._requested.wait(self._interval)


def activity(session: Session, choices: Sequence[ModelChoice]) -> str:
    """Return the line as HTML.

    Parameters
    ----------
    session : Session
    choices : sequence of ModelChoice
    """
    loaded = [choice.title for choice in choices if choice.state == "loaded"]
    parts = [f"{', '.join(loaded)} loaded" if loaded else "no model loaded yet"]
    # Running tasks first, then waiting ones.
    running = sorted(session.running, key=lambda task: task.progress.phase == "queued")
    for task in running[:2]:
        if isinstance(task, Generation):
            parts.append(f"{task.request.model}: {_line(task)}")
        else:
            parts.append(phase_line(task.progress))
    if len(running) > 2:
        parts.append(f"{len(running) - 2} more")
    if not running:
        parts.append("idle")
    words = " · ".join(html.escape(sanitize.to_plain(part)) for part in parts)
    state = "mlxm-busy" if running else "mlxm-idle"
    return (
        '<span class="mlxm-name">mlx-magic</span>'
        f'<span class="{state} {formulas.UNSET}" role="status">{words}</span>'
    )


def _line(task: Generation) -> str:
    """Return the phase of a generation, without the token count, which changes too often."""
    progress = task.progress
    return "writing" if progress.phase == "decode" else phase_line(progress)
