"""State of a request while a model answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mlx_magic.backends.base import Report
from mlx_magic.backends.batching.admission import Reservation
from mlx_magic.backends.chat_templates.reasoning import ReasoningStream, Split
from mlx_magic.backends.device import platform
from mlx_magic.backends.grammars.compiled import CompiledGrammar
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk, Phase


def _unmarked(tokens: list[int]) -> str:
    return ""


@dataclass(slots=True)
class ActiveRequest:
    """A request while it is answered; its counts are updated as they become known.

    Attributes
    ----------
    request : GenerationRequest
    cancel : CancelToken
    report : callable
        Takes each `GenerationChunk`.
    images : int
        Images of the whole conversation.
    prompt_tokens, image_tokens : int
    cached_tokens : int
        Prompt tokens whose keys and values are cached.
    reservation : Reservation or None
        The memory that it may take; None before it is admitted.
    grammar : CompiledGrammar or None
        Of the schema of the answer.
    reasoning : ReasoningStream or None
        Separates the thoughts of the answer; None if the model has no marks for them.
    marked : callable
        Returns an answer with the tokens that mark places. See `ModelAdapter.marked`.
    tokens : list of int
        The answer so far.
    """

    request: GenerationRequest
    cancel: CancelToken
    report: Report
    images: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    reservation: Reservation | None = None
    grammar: CompiledGrammar | None = None
    reasoning: ReasoningStream | None = None
    marked: Callable[[list[int]], str] = _unmarked
    tokens: list[int] = field(default_factory=list)
    _written: int = 0

    def prefilling(self, prefilling: bool) -> None:
        """Note whether the prompt is still to be read, which takes memory of its own."""
        if self.reservation is not None:
            self.reservation.prefilling = prefilling

    def report_queued(self) -> None:
        """Report that the request waits for memory."""
        self.report(self._chunk("queued"))

    def report_prefill(self, read: int = 0) -> None:
        """Report prefill progress: prompt tokens read so far, after the cached ones."""
        self.report(self._chunk("prefill", read=read))

    def report_scored(self, count: int) -> None:
        """Report how many choices are scored."""
        self.report(replace(self._chunk("decode"), scored=count))

    def report_text(self, text: str, written: int, token: int) -> None:
        """Report what a token added to the answer.

        Parameters
        ----------
        text : str
            The text since the last report.
        written : int
            Tokens of the answer so far.
        token : int
            The last one.
        """
        self.prefilling(False)
        chunk = self._chunk("decode", text=text, written=written)
        # A library may report its last token twice, at the end with the rest of the text.
        is_new = written > self._written
        if is_new:
            self.tokens.append(token)
        if self.reasoning is not None:
            chunk = _split(chunk, self.reasoning.feed(text, token if is_new else None))
        self._written = written
        self.report(chunk)

    def report_rest(self) -> None:
        """Report text that was held back as a possible start of a mark, as the answer ends."""
        rest = Split() if self.reasoning is None else self.reasoning.finish()
        if rest != Split():
            self.report(_split(self._chunk("decode", written=self._written), rest))
        self.report_marked()

    def report_marked(self) -> None:
        """Report the whole answer once more, with the tokens that mark places, if it has any."""
        if self.tokens and (text := self.marked(self.tokens)):
            self.report(replace(self._chunk("decode", written=self._written), marked=text))

    def expand_image_tokens(self, length: int) -> None:
        """Raise the counts if one image token became many embeddings.

        Parameters
        ----------
        length : int
            Number of embeddings of the prompt.
        """
        extra = length - self.prompt_tokens
        if extra > 0:
            self.prompt_tokens += extra
            self.image_tokens += extra

    def pad_tokens(self, tokens: list[int]) -> list[int]:
        """Pad `tokens` to one entry per embedding; the padding's values are not used."""
        return [0] * (self.prompt_tokens - len(tokens)) + tokens

    def vision_progress(self, done: int, total: int) -> None:
        """Check `cancel`, and report vision progress; between two images.

        Parameters
        ----------
        done, total : int
            Both may count tiles, if the model cuts images into tiles, and the total may grow
            from call to call.

        Raises
        ------
        Cancelled
        """
        self.cancel.checkpoint()
        seen = done * self.images // total if total >= self.images else done
        if self.images > 1 and (seen or total >= self.images):
            self.report(replace(self._chunk("vision"), images_seen=seen, image_count=self.images))

    def _chunk(
        self, phase: Phase, *, text: str = "", read: int = 0, written: int = 0
    ) -> GenerationChunk:
        """Return a `GenerationChunk` with the current counts.

        Parameters
        ----------
        phase : Phase
        text : str
            Text since the last report.
        read : int
            Prompt tokens read so far, after the cached ones. Ignored in decode.
        written : int
            Tokens of the answer so far.
        """
        writing = phase == "decode"
        return GenerationChunk(
            phase,
            text=text,
            prompt_read=self.prompt_tokens if writing else self.cached_tokens + read,
            prompt_tokens=self.prompt_tokens,
            image_tokens=self.image_tokens,
            completion_tokens=written,
            peak_memory=platform.peak() if writing else 0,
            cached_tokens=self.cached_tokens,
        )


def _split(chunk: GenerationChunk, split: Split) -> GenerationChunk:
    """Return a chunk with the thoughts and the text of a part of the answer."""
    return replace(
        chunk, text=split.text, reasoning=split.reasoning, all_reasoning=split.all_reasoning
    )
