"""How a loaded model answers: together, or one request at a time, and why."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from mlx_magic.backends.batch_check.compare_rows import Budget, Probed, confirmed
from mlx_magic.backends.batch_check.model_signature import signature
from mlx_magic.backends.batch_check.verdict_cache import VerdictCache
from mlx_magic.backends.batching.kv_cache import flat
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.formatting import one_line
from mlx_magic.models.checkpoints import architectures, batch_support
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

WRONG = "its weights gave other numbers together than alone"
UNSEEN = "its weights are not compared yet, which is done when two questions meet"
FAILED = "its weights could not be compared"

_log = logging.getLogger(__name__)


class BatchPolicy:
    """Whether requests to a model are answered together; the engine's thread only.

    Parameters
    ----------
    shown : Verdict
        What the table says of models like it.
    remembered : VerdictCache
        What was seen of these weights before.

    Attributes
    ----------
    verdict : Verdict
        As a person reads it; safe from any thread.
    """

    def __init__(self, shown: Verdict, remembered: VerdictCache) -> None:
        self._shown = shown
        self._remembered = remembered
        self.verdict = shown
        if shown.together and not remembered.known:
            self._apart(UNSEEN)

    @property
    def together(self) -> bool:
        """Whether requests are answered together now."""
        return self.verdict.together

    @property
    def unseen(self) -> bool:
        """Whether its weights are still to be looked at."""
        return self.verdict.why == UNSEEN

    def chunk(self, nbytes: int) -> int:
        """Return how many tokens of a prompt are read at once.

        Parameters
        ----------
        nbytes : int
            Bytes of the weights.
        """
        return platform.prefill_chunk(nbytes) if self.verdict.chunks else platform.LIBRARY_CHUNK

    def look(
        self, probed: Probed, budget: Budget, cancel: CancelToken
    ) -> Generator[None, None, None]:
        """Look at the weights, unless that was done; a call of the model a slice.

        Raises
        ------
        Cancelled
        """
        if not self.unseen:
            return
        try:
            agree = yield from confirmed(probed, budget, cancel)
        except Cancelled:
            raise
        except Exception as error:
            _log.info("The weights could not be looked at: %s", one_line(error))
            self._apart(FAILED)
            return
        if agree:
            self.verdict = self._shown
            self._remembered.keep()
        elif agree is not None:
            self._apart(WRONG)

    def _apart(self, why: str) -> None:
        self.verdict = replace(self._shown, together=False, why=why)


def standing(
    library: str, checkpoint: Checkpoint, language_model: Any, config: Any, caches: list[Any]
) -> BatchPolicy:
    """Return how a model that was just loaded answers.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    checkpoint : Checkpoint
    language_model, config : object
        As the library loads them.
    caches : list
        New ones, one a layer.
    """
    kind: Kind = "vision" if library == "mlx-vlm" else "text"
    architecture = architectures.module_name(kind, checkpoint.config)
    shown = batch_support.verdict(signature(library, language_model, config, caches), architecture)
    if not caches or not all(hasattr(cache, "merge") for cache in flat(caches)):
        shown = replace(shown, together=False, why="its caches cannot be put together")
    return BatchPolicy(shown, VerdictCache(checkpoint))
