"""Prompts whose beginning a model has read before: keys and values of what it read."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = list[tuple[Any, Any]]
"""Keys and values of each layer, of shape (1, heads, tokens, width)."""

LEAST = 16
"""Tokens that are worth a warm start: nearly every prompt begins with the same few."""


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of tokens, and what may follow it."""

    prompt_keys: tuple[Hashable, ...]
    rows: Rows
    parent: _Node | None
    last_used: int
    children: dict[Hashable, _Node] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(int(keys.nbytes + values.nbytes) for keys, values in self.rows)


class PrefixCache:
    """A tree of what was read, in which prompts share what they begin with.

    The arrays in it are never written to and never given away: a warm start gets arrays
    of its own. Use it on the inference thread only, and keep rows of answers that came
    to their end only: what was cut short may be ahead of its tokens, or behind.

    Parameters
    ----------
    limit : int
        Bytes to keep; what was not used for longest goes first.

    Attributes
    ----------
    hits, misses : int
        Prompts of which a beginning was known, and the others.
    nbytes : int
        What is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.nbytes = 0
        self._clock = itertools.count()
        self._root = _Node((), [], None, 0)

    def find(self, prompt_keys: Sequence[Hashable]) -> tuple[int, Rows]:
        """Return how much of a prompt's beginning is known, and its keys and values.

        Parameters
        ----------
        prompt_keys : sequence
            What stands at each place of the prompt. The last one is always read anew.

        Returns
        -------
        tuple of int and list
            Tokens, and arrays of its own for each layer; 0 and nothing below `LEAST`.
        """
        path = self._path(prompt_keys[:-1])
        count = sum(length for _, length in path)
        if count < LEAST:
            self.misses += 1
            return 0, []
        self.hits += 1
        return count, _joined([_cut(node.rows, 0, length) for node, length in path])

    def keep(self, prompt_keys: Sequence[Hashable], rows: Rows, start: int) -> None:
        """Keep what was read and written for one answer.

        Parameters
        ----------
        prompt_keys : sequence
            What stood at each place.
        rows : list
            Keys and values from place `start` on.
        start : int
            What comes before was in the tree when the answer began. If it has gone
            since, nothing is kept.
        """
        path = self._path(prompt_keys)
        known = sum(length for _, length in path)
        if known < start or known >= len(prompt_keys):
            return
        path_ids = {id(node) for node, _ in path}
        each = sum(int(k.nbytes + v.nbytes) for k, v in rows) // max(len(prompt_keys) - start, 1)
        free = self._evict(each * (len(prompt_keys) - known), path_ids)
        # The beginning of what does not fit as a whole is worth keeping too.
        end = min(len(prompt_keys), known + free // max(each, 1))
        if end <= known:
            return
        parent, length = path[-1] if path else (self._root, 0)
        if length < len(parent.prompt_keys):
            self._split(parent, length)
        node = _Node(
            tuple(prompt_keys[known:end]),
            copied_rows(_cut(rows, known - start, end - start)),
            parent,
            next(self._clock),
        )
        parent.children[node.prompt_keys[0]] = node
        self.nbytes += node.nbytes

    def clear(self) -> None:
        """Forget all prompts, at once: each knows its parent, which knows it."""
        for node in self._nodes():
            node.parent = None
        self._root = _Node((), [], None, 0)
        self.nbytes = 0

    def _path(self, prompt_keys: Sequence[Hashable]) -> list[tuple[_Node, int]]:
        """Walk along a prompt; return each stretch, and how far it is the same."""
        path: list[tuple[_Node, int]] = []
        node, at, now = self._root, 0, next(self._clock)
        while at < len(prompt_keys) and prompt_keys[at] in node.children:
            node = node.children[prompt_keys[at]]
            node.last_used = now
            same = _same(node.prompt_keys, prompt_keys[at : at + len(node.prompt_keys)])
            path.append((node, same))
            at += same
            if same < len(node.prompt_keys):
                break
        return path

    def _split(self, node: _Node, at: int) -> None:
        """Cut a stretch in two; the node itself becomes the first of them."""
        self.nbytes -= node.nbytes
        rest = _Node(
            node.prompt_keys[at:],
            copied_rows(_cut(node.rows, at, len(node.prompt_keys))),
            node,
            node.last_used,
            node.children,
        )
        for child in rest.children.values():
            child.parent = rest
        node.rows = copied_rows(_cut(node.rows, 0, at))
        node.prompt_keys = node.prompt_keys[:at]
        node.children = {rest.prompt_keys[0]: rest}
        self.nbytes += node.nbytes + rest.nbytes

    def _evict(self, wanted: int, path_ids: set[int]) -> int:
        """Let go of what was not used for longest; return the bytes that are free then."""
        while self.nbytes + wanted > self.limit:
            leaves = [n for n in self._nodes() if not n.children and id(n) not in path_ids]
            if not leaves:
                break
            oldest = min(leaves, key=lambda node: node.last_used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.prompt_keys[0]]
            self.nbytes -= oldest.nbytes
        return max(self.limit - self.nbytes, 0)

    def _nodes(self) -> Iterator[_Node]:
        waiting = list(self._root.children.values())
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            yield node


def cut_out(caches: Sequence[Any], wanted: Sequence[tuple[int, int]]) -> list[Rows]:
    """Return keys and values of answers that are written; not copied, and up to the last token.

    Parameters
    ----------
    caches : sequence
        Of each layer: those of a batch, or plain ones of a single answer.
    wanted : sequence of (int, int)
        An answer's row, and from which of its tokens on.
    """
    padding = getattr(caches[0], "left_padding", None)
    # All layers' are padded alike, and each look at a number waits for a GPU.
    pads = [0] if padding is None else padding.tolist()
    end = caches[0].offset if padding is None else caches[0].size()
    found = []
    for at, start in wanted:
        index = (slice(at, at + 1), slice(None), slice(start + pads[at], end))
        found.append([(cache.keys[index], cache.values[index]) for cache in caches])
    return found


def _same(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Count the places at the beginning at which both are the same."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))


def _cut(rows: Rows, start: int, end: int) -> Rows:
    return [(keys[:, :, start:end], values[:, :, start:end]) for keys, values in rows]


def _joined(parts: list[Rows]) -> Rows:
    import mlx.core as mx

    if len(parts) == 1:
        return parts[0]
    return [
        (
            mx.concatenate([keys for keys, _ in layer], axis=2),
            mx.concatenate([values for _, values in layer], axis=2),
        )
        for layer in zip(*parts, strict=True)
    ]


def copied_rows(rows: Rows) -> Rows:
    """Return evaluated copies, which do not keep alive what they were cut out of."""
    import mlx.core as mx

    made = [(mx.contiguous(keys), mx.contiguous(values)) for keys, values in rows]
    mx.eval(made)
    return made
