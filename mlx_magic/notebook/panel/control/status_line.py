"""The panel's status line: everything that runs in this kernel, also from cells."""

from __future__ import annotations

import html
from collections.abc import Sequence

from mlx_magic.engine.generation import Generation
from mlx_magic.notebook.display import formulas, sanitize
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.notebook.panel.state.model_choices import ModelChoice
from mlx_magic.session import Session


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
