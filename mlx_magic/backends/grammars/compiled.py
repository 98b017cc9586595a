"""The grammars of one model, compiled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.grammars.matcher import GrammarMatcher, Thoughts, refused
from mlx_magic.backends.grammars.tokenizer import grammar_tokenizer
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.cancellation import CancelToken

MOST = 16
"""Grammars that are kept."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for the tokenizer of one model.

    Attributes
    ----------
    tokenizer : LLTokenizer
    matcher : LLMatcher
        At the start of the grammar.
    model : str
        Name of the model, for messages.
    """

    tokenizer: Any
    matcher: Any
    model: str

    def start(self, thoughts: Thoughts | None = None) -> GrammarMatcher:
        """Return a matcher at the start of an answer. See `GrammarMatcher`."""
        return GrammarMatcher(
            self.tokenizer, self.matcher.deep_copy(), model=self.model, thoughts=thoughts
        )


class Grammars:
    """Compiles grammars for one model, each once; on the inference thread.

    Parameters
    ----------
    tokenizer : callable
        Returns the tokenizer of transformers.
    stop_tokens : callable
        Returns the tokens that end an answer.
    model : str
        Name of the model, for messages.
    """

    def __init__(
        self, tokenizer: Callable[[], Any], stop_tokens: Callable[[], Collection[int]], model: str
    ) -> None:
        self._of_transformers = tokenizer
        self._stop_tokens = stop_tokens
        self._model = model
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def compile(self, grammar: str, cancel: CancelToken) -> Generator[None, None, CompiledGrammar]:
        """Compile a grammar on a background thread, unless that was done.

        Raises
        ------
        Cancelled, GenerationError
        """
        if self._tokenizer is None:
            source, stop_tokens = self._of_transformers(), self._stop_tokens()
            reading = BackgroundCall(lambda: grammar_tokenizer(source, stop_tokens, self._model))
            self._tokenizer = yield from reading.result(cancel)
        found = self._compiled.pop(grammar, None)
        if found is None:
            tokenizer = self._tokenizer
            compiling = BackgroundCall(lambda: _compiled(tokenizer, grammar, self._model))
            found = yield from compiling.result(cancel)
        self._compiled[grammar] = found
        if len(self._compiled) > MOST:
            self._compiled.popitem(last=False)
        return found

    def clear(self) -> None:
        """Drop all grammars."""
        self._compiled.clear()
        self._tokenizer = None


def _compiled(tokenizer: Any, grammar: str, model: str) -> CompiledGrammar:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        raise refused(model, matcher)
    return CompiledGrammar(tokenizer, matcher, model)
