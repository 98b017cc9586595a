"""Protocol of a language model's forward pass, as a batch uses it, and its wired limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Inputs = Mapping[str, Any]
"""Inputs of a language model beside its tokens: ``inputs_embeds`` of shape (rows, tokens, width),
and whatever else the model's ``get_input_embeddings`` returns. Empty for a text model."""


@dataclass(frozen=True, slots=True)
class Row:
    """Some tokens of a prompt that shares a prefill.

    Attributes
    ----------
    inputs : mapping
        Its inputs, of shape (1, tokens, …). Those that the model would cut at the number of cached
        tokens have those tokens, too.
    length : int
        Tokens to read, after the cached prefix.
    begin, end : int
        Which of these tokens a call reads.
    """

    inputs: Inputs
    length: int
    begin: int = 0
    end: int = 0

    def cut(self, begin: int, end: int) -> Row:
        """Return the row with other tokens; none if the prompt ends before `begin`."""
        return Row(self.inputs, self.length, begin, max(begin, end))


class ForwardModel(Protocol):
    """A language model with one library's way to call it; on the inference thread only."""

    @property
    def stream(self) -> Any:
        """The MLX stream on which the library runs its models."""

    def new_caches(self) -> list[Any]:
        """Return empty caches of one request, one per layer."""

    def is_stop_token(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def reads_in_chunks(self, tokens: Any, caches: list[Any], inputs: Inputs) -> bool:
        """Whether a prompt may be read in several calls; some models need it whole."""

    def joins(self, inputs: Inputs) -> bool:
        """Whether a prompt with these inputs can share a prefill: `columns` can cut them."""

    def columns(self, rows: Sequence[Row], width: int) -> Inputs:
        """Return the inputs of several prompts for some of their tokens, in one row each.

        Parameters
        ----------
        rows : sequence of Row
            Their inputs are accepted by `joins`, and all have the same keys.
        width : int
            Tokens of the call; a row of fewer tokens is padded on the right.
        """

    def prefill(self, tokens: Any, caches: list[Any], inputs: Inputs) -> None:
        """Read tokens of shape (rows, tokens) that are not the last ones of their prompts."""

    def prefill_end(self, tokens: Any, caches: list[Any], inputs: Inputs, keep: int) -> Any:
        """Read the last tokens of prompts.

        Returns
        -------
        mlx.core.array
            Logits of shape (rows, positions, vocabulary), of at least the last `keep` positions.
        """

    def position_offsets(self, inputs: Inputs, rows: int) -> Any:
        """Return what to add to the positions of each row in decode, of shape (rows, 1).

        None for models that count positions by tokens. To be called after `prefill_end`.
        """

    def decode(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read tokens of each row; return the logits after the last, shape (rows, vocabulary).

        The tokens have shape (rows, 1). Several tokens are read only of a single row with plain
        caches and without offsets.
        """

    def read_rows(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read tokens of each row, shape (rows, tokens), after prompts that were read.

        Returns
        -------
        mlx.core.array
            Logits of shape (rows, tokens, vocabulary).
        """

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile, if the platform has a wired limit."""


class Wired:
    """Reference count of the process's wired limit; on the inference thread.

    The first user sets the limit and the last one resets it. Otherwise models that are used in
    turn would reset each other's limit.
    """

    def __init__(self) -> None:
        self._limit = contextlib.ExitStack()
        self._users = 0

    @contextlib.contextmanager
    def held(self, limit: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        """Hold the wired limit within this block.

        Parameters
        ----------
        limit : context manager
            ``wired_limit`` of mlx-vlm or mlx-lm; only the first user enters it.
        """
        if not self._users:
            self._limit.enter_context(limit)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._limit.close()


SHARED = Wired()
"""The instance of this process."""
