"""Scores of answers as rows after one shared prompt, and one at a time through a library."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.forward import ForwardModel
from mlx_magic.backends.prefix_cache.prompt_cache import copied
from mlx_magic.cancellation import CancelToken

MOST_POSITIONS = 128
"""Tokens of all rows in one call: each has logits over the vocabulary (152,000 words: 78 MB in
float32), and a call must not hold up other requests."""

StopTokens = Callable[[int], tuple[int, ...]]
"""Takes the size of the vocabulary; returns the stop tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be scored.

    Attributes
    ----------
    tokens : tuple of int
        With its end, if that is known.
    is_open : bool
        Whether its end is any stop token after `tokens`.
    """

    tokens: tuple[int, ...]
    is_open: bool

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that the model reads: after the last one there is nothing to score."""
        return self.tokens if self.is_open else self.tokens[:-1]


@dataclass(slots=True)
class ReadPrompt:
    """A prompt that was read.

    Attributes
    ----------
    caches : list
        One per layer.
    logits : mlx.core.array
        After its last token, shape (1, vocabulary).
    offsets : mlx.core.array or None
        See `ForwardModel.position_offsets`.
    """

    caches: list[Any]
    logits: Any
    offsets: Any = None


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How rows may be read.

    Attributes
    ----------
    most : int
        Maximum number of rows in one call; 1 unless the model's rows can be batched.
    wide : bool
        Whether several tokens of a row may be read in one call. Otherwise one, as in decode.
    """

    most: int
    wide: bool


class Scorer:
    """Log-probabilities of answers after one prompt.

    Parameters
    ----------
    forward : ForwardModel
    prompt : ReadPrompt
        Its caches are copied, and stay as they are.
    limits : RowLimits
    """

    def __init__(self, forward: ForwardModel, prompt: ReadPrompt, limits: RowLimits) -> None:
        self._forward = forward
        self._prompt = prompt
        self._limits = limits
        self._stops: tuple[int, ...] | None = None
        self._caches: list[Any] = []

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held now."""
        return kv_cache.caches_nbytes([*self._prompt.caches, *self._caches])

    def scores(
        self, answers: Sequence[Answer], cancel: CancelToken, on_scored: Callable[[int], None]
    ) -> Generator[None, None, list[float]]:
        """Return the log-probability of each answer; one call of the model per slice.

        Parameters
        ----------
        answers : sequence of Answer
        cancel : CancelToken
        on_scored : callable
            Takes the number of answers that are scored so far.

        Raises
        ------
        Cancelled
        """
        import mlx.core as mx

        with mx.stream(self._forward.stream):
            logits = self._prompt.logits[0].astype(mx.float32)
            firsts = logits[mx.array([answer.tokens[0] for answer in answers])]
            totals: list[float] = (firsts - mx.logsumexp(logits)).tolist()
        # By length, so that rows of one call need little padding.
        order = sorted(range(len(answers)), key=lambda at: len(answers[at].read))
        done = 0
        for group in self._groups([len(answers[at].read) for at in order]):
            chosen = order[group]
            found = yield from self._group([answers[at] for at in chosen], cancel)
            for at, score in zip(chosen, found, strict=True):
                totals[at] += score
            done += len(chosen)
            on_scored(done)
        self._caches = []
        return totals

    def _groups(self, lengths: Sequence[int]) -> Iterator[slice]:
        """Cut answers, the shortest first, into groups that are read in one call."""
        begin = 0
        for at, length in enumerate(lengths):
            positions = (at - begin + 1) * length if self._limits.wide else at - begin + 1
            if at > begin and (at - begin == self._limits.most or positions > MOST_POSITIONS):
                yield slice(begin, at)
                begin = at
        yield slice(begin, len(lengths))

    def _group(
        self, answers: Sequence[Answer], cancel: CancelToken
    ) -> Generator[None, None, list[float]]:
        import mlx.core as mx

        longest = max(len(answer.read) for answer in answers)
        totals = [0.0] * len(answers)
        if not longest:
            return totals
        tokens = [[*a.read, *[0] * (longest - len(a.read))] for a in answers]
        offsets = self._prompt.offsets
        with mx.stream(self._forward.stream):
            self._caches = self._rows(len(answers))
            if offsets is not None:
                offsets = mx.broadcast_to(offsets.reshape(1, -1), (len(answers), offsets.size))
        step = longest if self._limits.wide else 1
        for begin in range(0, longest, step):
            cancel.checkpoint()
            with mx.stream(self._forward.stream):
                part = mx.array([row[begin : begin + step] for row in tokens])
                logits = self._forward.read_rows(part, self._caches, offsets)
                self._add(totals, answers, begin, logits)
            yield
        self._caches = []
        return totals

    def _rows(self, count: int) -> list[Any]:
        """Return caches with the prompt in each of `count` rows."""
        import mlx.core as mx

        held = self._prompt.caches
        if count == 1:
            return copied(held)
        if not self._limits.wide:
            return kv_cache.merged(*[copied(held) for _ in range(count)])
        made = self._forward.new_caches()
        for cache, one in zip(made, held, strict=True):
            keys, values = one.keys[..., : one.offset, :], one.values[..., : one.offset, :]
            cache.keys = mx.repeat(keys, count, axis=0)
            cache.values = mx.repeat(values, count, axis=0)
            cache.offset = one.offset
        return made

    def _add(self, totals: list[float], answers: Sequence[Answer], begin: int, logits: Any) -> None:
        """Add the scores of the tokens that follow those of some columns.

        Parameters
        ----------
        totals : list of float
            One for each row; changed.
        answers : sequence of Answer
        begin : int
            The first of the columns.
        logits : mlx.core.array
            After the tokens of the columns, shape (rows, columns, vocabulary).
        """
        import mlx.core as mx

        columns = range(begin + 1, begin + 1 + logits.shape[1])
        wanted = [[a.tokens[at] if at < len(a.tokens) else 0 for at in columns] for a in answers]
        logits = logits.astype(mx.float32)
        totals_of_all = mx.logsumexp(logits, axis=-1)
        found = mx.take_along_axis(logits, mx.array(wanted)[..., None], axis=-1)[..., 0]
        scores: Any = (found - totals_of_all).tolist()
        ends: Any = []
        if any(answer.is_open and len(answer.tokens) in columns for answer in answers):
            ends = (self._of_ends(logits) - totals_of_all).tolist()
        for row, answer in enumerate(answers):
            for place, at in enumerate(columns):
                if at < len(answer.tokens):
                    totals[row] += scores[row][place]
                elif at == len(answer.tokens) and answer.is_open:
                    totals[row] += ends[row][place]

    def _of_ends(self, logits: Any) -> Any:
        """Return the logarithm of the summed weights of all stop tokens."""
        import mlx.core as mx

        if self._stops is None:
            self._stops = stop_tokens(self._forward.is_stop_token, int(logits.shape[-1]))
        return mx.logsumexp(logits[..., mx.array(list(self._stops))], axis=-1)


class ForcedAnswer:
    """A logits processor that lets a library write one answer, and notes how probable it was.

    Parameters
    ----------
    answer : Answer
    is_stop_token : callable
    """

    def __init__(self, answer: Answer, is_stop_token: Callable[[int], bool]) -> None:
        self._answer = answer
        self._is_stop_token = is_stop_token
        self._scores: list[Any] = []

    @property
    def done(self) -> bool:
        """Whether all of it is scored."""
        return len(self._scores) >= len(self._answer.tokens) + self._answer.is_open

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Note the score of the next token, and rule out all others."""
        import mlx.core as mx

        if self.done:
            return logits
        at, size = len(self._scores), int(logits.shape[-1])
        scores = logits[-1].astype(mx.float32)
        scores = scores - mx.logsumexp(scores)
        if at < len(self._answer.tokens):
            token = self._answer.tokens[at]
            self._scores.append(scores[token])
        else:
            ends = stop_tokens(self._is_stop_token, size)
            token = ends[0]
            self._scores.append(mx.logsumexp(scores[mx.array(list(ends))]))
        return mx.where(mx.arange(size) == token, 0.0, -mx.inf)[None].astype(logits.dtype)

    def score(self) -> float:
        """Return the log-probability of the answer."""
        return sum(float(score.item()) for score in self._scores)


def stop_tokens(is_stop_token: Callable[[int], bool], vocabulary: int) -> tuple[int, ...]:
    """Return all stop tokens of a vocabulary."""
    return tuple(token for token in range(vocabulary) if is_stop_token(token))


def shares(scores: Sequence[float]) -> tuple[float, ...]:
    """Return probabilities among answers from their log-probabilities."""
    import numpy as np

    numbers = np.array(scores, dtype=np.float32)
    weights = np.exp(numbers - numbers.max())
    return tuple(float(each) for each in weights / weights.sum())
