"""What a request is answered with, and what is known on the way to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_magic.engine.request import OutputFormat
from mlx_magic.images.image import ImageInput

Phase = Literal["queued", "downloading", "loading", "vision", "prefill", "decode", "done"]


FinishReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, counted on the model's own inputs.

    Attributes
    ----------
    prompt_tokens : int
        All tokens the model read, images included.
    image_tokens : int
        Those of them that stand for images.
    cached_tokens : int
        Those of the prompt that came from a cache.
    completion_tokens : int
        Tokens written.
    """

    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together, in tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds (rates in tokens per second).

    Attributes
    ----------
    queued, load, vision, prefill, decode : float
        Waiting, loading the model, the vision tower, reading the prompt, writing.
    time_to_first_token : float or None
        From the request to the first token; None if there was none.
    prompt_tps, generation_tps : float
        Tokens per second of prefill (vision included) and of decode; 0.0 where unknown.
    """

    queued: float = 0.0
    load: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    time_to_first_token: float | None = None
    prompt_tps: float = 0.0
    generation_tps: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """One step of a generation, as a backend reports it.

    Attributes
    ----------
    phase : Phase
        What the model is doing.
    text : str
        New text; may be empty.
    prompt_read, prompt_tokens, image_tokens : int
        Tokens read so far, of how many, and how many of these are images.
    cached_tokens : int
        Those of the prompt that came from a cache; they count as read.
    completion_tokens : int
        Tokens written so far.
    peak_memory : int
        Highest use during this request, in bytes.
    seen : tuple of str
        The size at which the model sees each image, once that is known.
    pictures_seen, pictures : int
        Images the model has looked at, of how many; 0 where it does not say.
    """

    phase: Phase
    text: str = ""
    prompt_read: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    peak_memory: int = 0
    seen: tuple[str, ...] = ()
    cached_tokens: int = 0
    pictures_seen: int = 0
    pictures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class VisionResult:
    """A complete answer. ``str(result)`` is its text.

    Attributes
    ----------
    text : str
        The answer; what there is of it when cancelled or timed out.
    data : object or None
        The parsed value for format ``"json"``.
    data_error : str or None
        Why `data` could not be parsed.
    images : tuple of ImageInput
        The images that were asked about.
    model : str
        The model that answered.
    finish_reason : {"stop", "length", "cancelled", "timeout"}
    usage : Usage
    timings : Timings
    peak_memory : int
        Highest memory use during the request, in bytes.
    prompt : str
        The question, as the model got it.
    format : OutputFormat
        How the result shows itself.
    seen : tuple of str
        The size at which the model saw each image, such as ``"128 x 128"``;
        empty where it is not known.
    stopped_in : Phase or None
        The phase in which it was cancelled or timed out.
    stopping : float or None
        Seconds from then, when it was asked to stop, to its end.
    """

    text: str
    model: str
    finish_reason: FinishReason
    data: Any = None
    data_error: str | None = None
    images: tuple[ImageInput, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    peak_memory: int = 0
    prompt: str = ""
    format: OutputFormat = "markdown"
    seen: tuple[str, ...] = ()
    stopped_in: Phase | None = None
    stopping: float | None = None

    def __str__(self) -> str:
        return self.text


# Its public name: pickles and IPython's formatters go by it.
VisionResult.__module__ = "mlx_magic"
