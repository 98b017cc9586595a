"""The state of one answer in its grammar: which tokens may come next."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from mlx_magic.errors import GenerationError
from mlx_magic.formatting import shown

MAX_JOINT_TOKENS = 32
"""Tokens without a choice that are read in one call."""


class Thoughts(Protocol):
    """Whether the thoughts of an answer have ended."""

    @property
    def openings(self) -> list[list[int]]:
        """The tokens of each mark that may open thoughts now; empty once that is decided."""

    def feed(self, token: int) -> None:
        """Process the next token."""

    @property
    def ended(self) -> bool:
        """Whether the answer has begun, so that no more thoughts come."""


class GrammarMatcher:
    """Follows one answer, token by token.

    Tokens that the grammar leaves no choice about are the same in a batch and alone: llguidance
    tokenizes them, as the tokenizer itself would.

    Parameters
    ----------
    tokenizer : LLTokenizer
    compiled : LLMatcher
        At the start of its grammar; it belongs to this matcher.
    model : str
        Name of the model, for messages.
    thoughts : Thoughts, optional
        Of a model that reasons: the grammar begins after them.

    Raises
    ------
    GenerationError
        llguidance cannot follow this grammar with this tokenizer.
    """

    def __init__(
        self, tokenizer: Any, compiled: Any, *, model: str, thoughts: Thoughts | None = None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._stop_tokens = list(tokenizer.eos_tokens)
        self._matcher = compiled
        self._check()
        self._forced: deque[int] = deque()
        self._thoughts = thoughts
        self._openings: list[list[int]] = []
        self._ended = False
        if thoughts is None or thoughts.ended:
            self._begin()
        else:
            # A mark in pieces may begin as an answer does: no thoughts then.
            allowed = self._matcher.validate_tokens
            self._openings = [mark for mark in thoughts.openings if not allowed(mark[:1])]
            if thoughts.openings and not self._openings:
                self._begin()

    @property
    def free(self) -> bool:
        """Whether every token may come next."""
        thinking = self._thoughts is not None and not self._openings and not self._forced
        return self._ended or thinking

    def advance(self, token: int) -> None:
        """Take the token that came.

        Raises
        ------
        GenerationError
            It does not follow the grammar, or the grammar became too complex.
        """
        if self._ended:
            return
        if self._thoughts is not None:
            self._think(token)
            return
        self._consume(token)

    def take_forced(self) -> list[int]:
        """Take the tokens that have to come next, at most `MAX_JOINT_TOKENS`."""
        taken: list[int] = []
        while self._thoughts is None and self._forced and len(taken) < MAX_JOINT_TOKENS:
            taken.append(self._forced[0])
            self._consume(self._forced[0])
        return taken

    def fill(self, words: Any) -> None:
        """Write which tokens may come next.

        Parameters
        ----------
        words : numpy.ndarray
            Contiguous, of dtype uint32: one bit per token, the first one lowest.
        """
        if self.free:
            words[:] = 0xFFFFFFFF
        elif self._forced:
            words[:] = 0
            _set(words, [self._forced[0]])
        elif self._matcher.is_stopped():
            words[:] = 0
            _set(words, self._stop_tokens)
        else:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self._check()
            _set(words, [mark[0] for mark in self._openings])

    @property
    def words(self) -> int:
        """Number of words of a mask."""
        return (int(self._tokenizer.vocab_size) + 31) // 32

    def _think(self, token: int) -> None:
        """Take a token at the start of an answer that may think, or of its thoughts."""
        assert self._thoughts is not None
        openings, self._openings = self._openings, []
        opened = [mark[1:] for mark in openings if mark[0] == token]
        if openings and not opened:
            # The answer has begun without thoughts.
            self._thoughts = None
            self._consume(token)
            return
        if opened:
            self._forced.extend(opened[0])
        elif self._forced:
            self._forced.popleft()
        self._thoughts.feed(token)
        if self._thoughts.ended:
            self._begin()

    def _begin(self) -> None:
        self._thoughts = None
        self._forced.clear()
        self._find_forced()

    def _consume(self, token: int) -> None:
        if token in self._stop_tokens:
            self._ended = True
            return
        self._matcher.consume_token(token)
        self._check()
        if self._forced:
            self._forced.popleft()
        if not self._forced:
            self._find_forced()

    def _find_forced(self) -> None:
        if not self._matcher.is_stopped():
            self._forced.extend(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise refused(self._model, self._matcher)


def refused(model: str, matcher: Any) -> GenerationError:
    """Return the error of a matcher that cannot go on."""
    message = shown(str(matcher.get_error()), 200)
    return GenerationError(
        f"{model}: the answer cannot follow its schema ({message}): ask with a simpler one.",
        model=model,
    )


def _set(words: Any, tokens: list[int]) -> None:
    """Set the bits of some tokens."""
    for token in tokens:
        words[token >> 5] |= 1 << (token & 31)
