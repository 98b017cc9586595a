"""Tokens of given answers, as they would stand after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.backends.given_answers.frame import AnswerFrame
from mlx_magic.errors import GenerationError

MOST_AFTER = 8
"""Tokens after an answer in which its end is looked for."""

_DECODED = 32
"""Tokens at the end of a prompt that are decoded, if its text is not what was tokenized."""

_ANCHORS = ("\n", ":", ".")
"""Texts after which an answer is tokenized if it would melt into the end of the prompt."""


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Tokens of answers.

    Attributes
    ----------
    answers : tuple of tuple of int
        Tokens of each answer, without its end.
    ends : tuple of tuple of int
        Tokens that follow each answer: what a template puts after it, up to the stop token. Empty
        if the template does not show the end of a turn.
    """

    answers: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]


class AnswerTokenizer:
    """Tokenizes answers after one prompt.

    A prompt ends where its tokens end: the answer's first token begins there. Most tokenizers
    split text at words, so that the tokens of prompt and answer together begin with those of the
    prompt. Where they do not, because the prompt ends with a space that would melt into the first
    word, the answer is tokenized after another text.

    Parameters
    ----------
    tokenizer : object
        Of transformers.
    frame : AnswerFrame
    prompt : sequence of int
        Tokens of the prompt.
    is_stop_token : callable
    control : collection of int
        Control tokens, which an answer must not have.
    model : str
        Name of the model, for messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        frame: AnswerFrame,
        prompt: Sequence[int],
        *,
        is_stop_token: Callable[[int], bool],
        control: Collection[int],
        model: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._frame = frame
        self._prompt = prompt
        self._is_stop_token = is_stop_token
        self._control = control
        self._model = model

    def tokens(self, labels: Sequence[str]) -> AnswerTokens:
        """Return the tokens of answers.

        Raises
        ------
        GenerationError
            An answer has a control token, or no tokens of its own.
        """
        befores = [(text, self._encode(text)) for text in self._befores()]
        pairs = [self._of(label, befores) for label in labels]
        return AnswerTokens(tuple(a for a, _ in pairs), tuple(end for _, end in pairs))

    def _befores(self) -> Iterator[str]:
        """Yield texts that may stand before an answer, the best first."""
        last = self._prompt[-1] if self._prompt else None
        tail = self._frame.tail
        if tail and self._encode(tail)[-1:] == [last]:
            yield tail
        else:
            # The processor has added something, such as a line break.
            known = [token for token in self._prompt[-_DECODED:] if token >= 0]
            tail = self._tokenizer.decode(known, skip_special_tokens=False)
            if tail and self._encode(tail)[-1:] == [last]:
                yield tail
        yield from _ANCHORS

    def _of(
        self, label: str, befores: Sequence[tuple[str, list[int]]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        lead, after = self._frame.lead, self._frame.after
        for before, known in befores:
            opened = self._encode(before + lead)
            answer = self._encode(before + lead + label)
            if answer[: len(known)] != known or len(answer) <= len(known):
                continue
            own = answer[len(known) :]
            if self._controls(own) != self._controls(opened[len(known) :]):
                raise GenerationError(
                    f"{self._model}: the choice {short_repr(label)} has a control token of this "
                    "model: write it in another way.",
                    model=self._model,
                )
            whole = self._encode(before + lead + label + after) if after else answer
            return tuple(own), self._end(answer, whole)
        raise GenerationError(
            f"{self._model}: its tokenizer gives the choice {short_repr(label)} no tokens of its "
            "own after the prompt: write it in another way.",
            model=self._model,
        )

    def _end(self, answer: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens from an answer to its stop token; none if that is not known."""
        if list(whole[: len(answer)]) != list(answer):
            return ()
        rest = whole[len(answer) : len(answer) + MOST_AFTER]
        stop = next((at for at, token in enumerate(rest) if self._is_stop_token(token)), None)
        return () if stop is None else tuple(rest[: stop + 1])

    def _controls(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._control]

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return list(tokens)
