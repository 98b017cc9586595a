"""The session of this process, replaced by one with scripted models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlx_magic import default_session
from mlx_magic.testing import ScriptedBackend, scripted_session


@contextmanager
def scripted_default(text: str) -> Iterator[ScriptedBackend]:
    """Answer with this text within the block; yield the backend."""
    script = ScriptedBackend(text)
    session = scripted_session(backend=script)
    before = default_session.replace_current(session)
    try:
        yield script
    finally:
        script.release()
        session.close()
        default_session.replace_current(before)
