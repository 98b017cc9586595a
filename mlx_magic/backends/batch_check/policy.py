"""Policy of a loaded model: batch its requests, or answer one at a time, and why."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batch_check.compare_rows import Budget, ProbedModel, rows_agree
from mlx_magic.backends.batch_check.library_caches import batch_caches_work
from mlx_magic.backends.batch_check.model_signature import signature
from mlx_magic.backends.batch_check.verdict_cache import VerdictCache
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_cache import CacheKind
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.formatting import one_line
from mlx_magic.models.checkpoints import architectures, batch_support
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

DIFFERENT = "with its weights, batched answers differ from single ones"
NOT_COMPARED = "its weights are not compared yet, which happens when two questions run at once"
FAILED = "its weights could not be compared"

_log = logging.getLogger(__name__)


class BatchPolicy:
    """Whether requests to a model are batched; on the inference thread only.

    Parameters
    ----------
    table_verdict : Verdict
        Verdict of together.json for the model's signature.
    verdict_cache : VerdictCache
        Result of an earlier comparison of these weights.

    Attributes
    ----------
    verdict : Verdict
        The current verdict, for display; safe from any thread.
    """

    def __init__(self, table_verdict: Verdict, verdict_cache: VerdictCache) -> None:
        self._table_verdict = table_verdict
        self._verdict_cache = verdict_cache
        self.verdict = table_verdict
        if table_verdict.together and not verdict_cache.known:
            self._disable(NOT_COMPARED)

    @property
    def together(self) -> bool:
        """Whether requests are batched now."""
        return self.verdict.together

    @property
    def possible(self) -> bool:
        """Whether requests are batched, now or after a comparison of the weights."""
        return self.together or self.not_compared

    def cache_kind(self, caches: list[Any]) -> CacheKind | None:
        """Return how prompts may be cached; None if they must not be.

        A cached prefix is the end of a prefill chunk, so the model must read prompts in chunks.
        """
        if not self.possible:
            return None
        if kv_cache.all_plain(caches):
            return "plain"
        return "states" if self._table_verdict.chunks else None

    @property
    def not_compared(self) -> bool:
        """Whether the weights are still to be compared."""
        return self.verdict.why == NOT_COMPARED

    def chunk(self, nbytes: int) -> int:
        """Return the number of tokens per prefill chunk.

        Parameters
        ----------
        nbytes : int
            Bytes of the weights.
        """
        return platform.prefill_chunk(nbytes) if self.verdict.chunks else platform.LIBRARY_CHUNK

    def compare_weights(
        self, probed: ProbedModel, budget: Budget, cancel: CancelToken
    ) -> Generator[None, None, None]:
        """Compare the weights, unless that was done; one call of the model per slice.

        Raises
        ------
        Cancelled
        """
        if not self.not_compared:
            return
        try:
            agree = yield from rows_agree(probed, budget, cancel)
        except Cancelled:
            raise
        except Exception as error:
            _log.info("The weights could not be compared: %s", one_line(error))
            self._disable(FAILED)
            return
        if agree:
            self.verdict = self._table_verdict
            self._verdict_cache.keep()
        elif agree is not None:
            self._disable(DIFFERENT)

    def _disable(self, why: str) -> None:
        self.verdict = replace(self._table_verdict, together=False, why=why)


def batch_policy(
    library: str, checkpoint: Checkpoint, language_model: Any, config: Any, caches: list[Any]
) -> BatchPolicy:
    """Return the policy of a model that was just loaded.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    checkpoint : Checkpoint
    language_model, config : object
        As the library loads them.
    caches : list
        New caches, one per layer.
    """
    kind: Kind = "vision" if library == "mlx-vlm" else "text"
    architecture = architectures.module_name(kind, checkpoint.config)
    table_verdict = batch_support.verdict(
        signature(library, language_model, config, caches), architecture
    )
    if not caches or not all(hasattr(cache, "merge") for cache in leaf_caches(caches)):
        table_verdict = replace(
            table_verdict, together=False, why="its caches cannot be put together"
        )
    batches = upstream.VISION_BATCHES if kind == "vision" else upstream.TEXT_BATCHES
    if not batches.is_on(batch_caches_work):
        table_verdict = replace(table_verdict, together=False, why=str(batches.off))
    elif not upstream.positions_are_known(language_model):
        table_verdict = replace(table_verdict, together=False, why="its positions cannot be read")
    return BatchPolicy(table_verdict, VerdictCache(checkpoint))
