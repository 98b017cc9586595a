"""Models that answer together, or one request at a time, whatever the table says of them."""

from __future__ import annotations

import pytest

from mlx_magic.backends.batch_check.verdict_cache import VerdictCache
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import Verdict


def let_answer(patch: pytest.MonkeyPatch, *, together_: bool, chunks: bool = True) -> None:
    """Let models that are made from here on answer so; their weights count as looked at."""
    why = "" if together_ else "the test says so"
    verdict = Verdict(together_, chunks, why)
    patch.setattr(batch_support, "verdict", lambda signature, architecture: verdict)
    patch.setattr(VerdictCache, "known", property(lambda self: True))
