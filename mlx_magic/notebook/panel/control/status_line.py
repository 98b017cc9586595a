"""The panel's top line: what goes on in this kernel, whoever began it."""

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
    # What waits says less than what is being done.
    running = sorted(session.running, key=lambda work: work.progress.phase == "queued")
    for work in running[:2]:
        if isinstance(work, Generation):
            parts.append(f"{work.request.model}: {_line(work)}")
        else:
            parts.append(phase_line(work.progress))
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


def _line(work: Generation) -> str:
    """Without what changes at each token: this line is for whoever looks up now and then."""
    progress = work.progress
    return "writing" if progress.phase == "decode" else phase_line(progress)
