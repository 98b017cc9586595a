"""Protocol of a language model's forward pass, as a batch uses it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Inputs = Mapping[str, Any]
"""Inputs of a language model beside its tokens: ``inputs_embeds`` of shape (rows, tokens, width),
and whatever else the model's ``get_input_embeddings`` returns. Empty for a text model."""


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
        """Read one token of each row, shape (rows, 1); return logits (rows, vocabulary)."""

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile, if the platform has a wired limit."""
