"""Force models to batch requests, or to answer one at a time, whatever the verdict table says."""

from __future__ import annotations

import pytest

from mlx_magic.backends.batch_check.policy import VerdictCache
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import Verdict


def let_answer(patch: pytest.MonkeyPatch, *, together_: bool, chunks: bool = True) -> None:
    """Apply a verdict to all models created from now on; their weights count as compared."""
    why = "" if together_ else "the test says so"
    verdict = Verdict(together_, chunks, why)
    patch.setattr(batch_support, "verdict", lambda signature, architecture: verdict)
    patch.setattr(VerdictCache, "known", property(lambda self: True))
