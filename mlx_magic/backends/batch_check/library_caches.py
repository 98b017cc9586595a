"""Whether the libraries' caches of a batch work as this project uses them, on a few numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
