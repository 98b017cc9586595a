"""Policy of a loaded model: batch its requests, or answer one at a time, and why."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batch_check.compare_rows import Budget, ProbedModel, rows_agree
from mlx_magic.backends.batch_check.verdict_cache import VerdictCache, signature
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


_MODEL = SimpleNamespace(layers=[None])


def batch_caches_work(names: Any) -> bool:
    """Whether rows of a batch's caches join, leave and move as expected; on the inference thread.

    Parameters
    ----------
    names : object
        The names of `upstream.TEXT_BATCHES` or `upstream.VISION_BATCHES`.
    """
    import mlx.core as mx

    with mx.stream(names.generation_stream):
        first, second, third = (_filled(names, row) for row in ([1, 2, 3], [5, 6], [8]))
        if not _holds([[1, 2, 3]], first):
            return False
        batch = type(first).merge([first, second])
        steps = [_holds([[1, 2, 3], [5, 6]], batch)]
        _add(batch, [[4], [7]])
        steps.append(_holds([[1, 2, 3, 4], [5, 6, 7]], batch))
        batch.extend(type(third).merge([third]))
        steps.append(_holds([[1, 2, 3, 4], [5, 6, 7], [8]], batch))
        batch.filter(mx.array([0, 2], mx.int32))
        # The second row is padded on the right, and the padding moves to the left.
        _add(batch, [[11, 12], [9, 0]])
        batch.prepare(right_padding=[0, 1])
        batch.finalize()
        steps.append(_holds([[1, 2, 3, 4, 11, 12], [8, 9]], batch))
        mx.eval(batch.state)
        bits = _filled(names, [1]).to_quantized(group_size=32, bits=8)
    return all(steps) and hasattr(bits, "update_and_fetch")


def _filled(names: Any, row: list[int]) -> Any:
    cache = names.make_prompt_cache(_MODEL)[0]
    _add(cache, [row])
    return cache


def _add(cache: Any, rows: list[list[int]]) -> None:
    import mlx.core as mx

    keys = mx.repeat(mx.array(rows, mx.float32)[:, None, :, None], 32, axis=-1)
    cache.update_and_fetch(keys, keys)


def _holds(rows: list[list[int]], cache: Any) -> bool:
    """Whether a cache holds these rows, read as `radix_tree.cut_out` does."""
    from mlx_magic.backends.prefix_cache.radix_tree import cut_out

    found = cut_out([cache], [(at, 0) for at in range(len(rows))])
    return rows == [[int(x) for x in layers[0][0][0, 0, :, 0].tolist()] for layers in found]
