"""Radix tree of prompts with their keys and values: the prefix cache."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = list[tuple[Any, Any]]
"""Keys and values of each layer, of shape (1, heads, tokens, width)."""

LEAST = 16
"""Minimum tokens of a cached prefix: nearly every prompt begins with the same few."""


@dataclass(slots=True, eq=False)
class _Node:
    """An edge of the tree: a run of tokens, and the runs that follow it."""

    prompt_keys: tuple[Hashable, ...]
    rows: Rows
    parent: _Node | None
    last_used: int
    children: dict[Hashable, _Node] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return _nbytes(self.rows)


def _nbytes(rows: Rows) -> int:
    return sum([int(keys.nbytes + values.nbytes) for keys, values in rows])


class PrefixCache:
    """Radix tree of prompts, which share the nodes of their common prefixes.

    The arrays in it are never written to and never handed out: `find` returns new ones. Use it on
    the inference thread only. Keep only finished answers: a cancelled one may have more or fewer
    keys and values than tokens.

    Parameters
    ----------
    limit : int
        Maximum bytes; the least recently used nodes are evicted first.

    Attributes
    ----------
    hits, misses : int
        Prompts with and without a cached prefix.
    nbytes : int
        Bytes held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.nbytes = 0
        self._clock = itertools.count()
        self._root = _Node((), [], None, 0)

    def find(self, prompt_keys: Sequence[Hashable]) -> tuple[int, Rows]:
        """Return the length of the cached prefix of a prompt, and its keys and values.

        Parameters
        ----------
        prompt_keys : sequence
            Keys of the prompt's tokens. The last token is never taken from the cache.

        Returns
        -------
        tuple of int and list
            Number of tokens, and new arrays per layer; 0 and an empty list below `LEAST`.
        """
        path = self._path(prompt_keys[:-1])
        count = sum(length for _, length in path)
        if count < LEAST:
            self.misses += 1
            return 0, []
        self.hits += 1
        return count, _joined([_cut(node.rows, 0, length) for node, length in path])

    def keep(self, prompt_keys: Sequence[Hashable], rows: Rows, start: int) -> None:
        """Add a prompt and its answer.

        Parameters
        ----------
        prompt_keys : sequence
            Keys of the tokens of both.
        rows : list
            Keys and values from token `start` on.
        start : int
            Length of the prefix that was in the tree when the answer began. If the prefix was
            evicted since, nothing is added.
        """
        path = self._path(prompt_keys)
        known = sum(length for _, length in path)
        if known < start or known >= len(prompt_keys):
            return
        path_ids = {id(node) for node, _ in path}
        each = _nbytes(rows) // max(len(prompt_keys) - start, 1)
        free = self._evict(each * (len(prompt_keys) - known), path_ids)
        # If not all of it fits, its beginning is worth keeping too.
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
        """Clear the tree; parents are unset to break reference cycles, which frees it at once."""
        for node in self._nodes():
            node.parent = None
        self._root = _Node((), [], None, 0)
        self.nbytes = 0

    def _path(self, prompt_keys: Sequence[Hashable]) -> list[tuple[_Node, int]]:
        """Return the nodes along a prompt, each with the number of its tokens that match."""
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
        """Split a node in two; the node itself becomes the first part."""
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
        """Evict the least recently used leaves; return the bytes that are free then."""
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
    """Return views of the keys and values of rows in decode, up to their last token.

    Parameters
    ----------
    caches : sequence
        One per layer: batch caches, or plain caches of a single row.
    wanted : sequence of (int, int)
        Each a row, and its first token to return.
    """
    padding = getattr(caches[0], "left_padding", None)
    # All layers have the same padding, and each read of a number waits for the GPU.
    pads = [0] if padding is None else padding.tolist()
    end = caches[0].offset if padding is None else caches[0].size()
    found = []
    for at, start in wanted:
        index = (slice(at, at + 1), slice(None), slice(start + pads[at], end))
        found.append([(cache.keys[index], cache.values[index]) for cache in caches])
    return found


def _same(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the length of the common prefix."""
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
    """Return evaluated copies, so that the arrays they were sliced from can be freed."""
    import mlx.core as mx

    made = [(mx.contiguous(keys), mx.contiguous(values)) for keys, values in rows]
    mx.eval(made)
    return made
