"""The result of a request, and the chunks that are reported before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mlx_magic.engine.places.grounding import Grounding, Scale
from mlx_magic.engine.places.values import Boxes, Points
from mlx_magic.engine.request import OutputFormat
from mlx_magic.errors import ShortTraceback
from mlx_magic.images.image import ImageInput

if TYPE_CHECKING:
    from PIL import Image

Phase = Literal["queued", "downloading", "loading", "vision", "prefill", "decode", "done"]


FinishReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens, counted in the model's inputs.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt, including image tokens.
    image_tokens : int
        Image tokens of the prompt.
    cached_tokens : int
        Tokens of the prompt whose keys and values came from the prefix cache.
    completion_tokens : int
        Tokens of the answer.
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
    """Times in seconds, and rates in tokens per second.

    Attributes
    ----------
    queued, load, vision, prefill, decode : float
        Waiting, loading the model, the vision encoder, prefill, decode.
    time_to_first_token : float or None
        From the request to the first token; None if there was none.
    prompt_tps, generation_tps : float
        Tokens per second of prefill (including vision) and of decode; 0.0 is unknown.
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
    """One step of a generation, reported by a backend.

    Attributes
    ----------
    phase : Phase
        The current phase.
    text : str
        New text; may be empty.
    prompt_read, prompt_tokens, image_tokens : int
        Prompt tokens processed so far, all prompt tokens, and the image tokens among these.
    cached_tokens : int
        Prompt tokens from the prefix cache; they count as processed.
    completion_tokens : int
        Tokens of the answer so far.
    peak_memory : int
        Highest use during this request, in bytes.
    seen : tuple of str
        The size at which the model sees each image, once that is known.
    images_seen, image_count : int
        Images encoded so far, and all images; 0 is unknown.
    reasoning : str
        New text of the model's thoughts, which are not part of its answer; before `text`.
    all_reasoning : bool
        Whether all text before this chunk was reasoning, too: the model left out the mark that
        begins its thoughts, and has now ended them.
    hint : str
        What the request costs and what would cost less, to be shown before a slow prefill.
    grounding : Grounding or None
        What the coordinates of the answer depend on, with `seen`.
    marked : str
        At the end: the whole answer with the special tokens that mark places, if it has any.
    scored : int
        Choices whose probability is known so far.
    probabilities : tuple of float
        Probability of each choice, once all are known.
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
    images_seen: int = 0
    image_count: int = 0
    hint: str = ""
    reasoning: str = ""
    all_reasoning: bool = False
    grounding: Grounding | None = None
    marked: str = ""
    scored: int = 0
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class VisionResult:
    """A complete answer. ``str(result)`` is its text.

    Attributes
    ----------
    text : str
        The answer; the part so far if it was cancelled or timed out. Empty if it ended within
        the thoughts.
    data : object or None
        The typed object of a schema, or the parsed value for format ``"json"``.
    data_error : str or None
        Why there is no `data`.
    images : tuple of ImageInput
        The images of the question.
    model : str
        The model that answered.
    finish_reason : {"stop", "length", "cancelled", "timeout"}
    usage : Usage
    timings : Timings
    peak_memory : int
        Highest memory use during the request, in bytes.
    prompt : str
        The question, as it was given to the model.
    format : OutputFormat
        How the result is displayed.
    seen : tuple of str
        The size at which the model saw each image, such as ``"128 x 128"``; empty if unknown.
    stopped_in : Phase or None
        The phase in which the request was cancelled or timed out.
    stopping : float or None
        Seconds from the cancellation or timeout to the end.
    reasoning : str
        The model's thoughts before its answer, without their marks; empty if it has none.
    grounding : Grounding or None
        What the coordinates of the answer depend on; None for a model that sees no images.
    partial : dict, list or None
        With a schema, and if the answer is not `complete`: its fields or items that are.
    complete : bool
        Whether the answer is whole: with a schema, whether `data` is its object; otherwise
        whether the model has ended it.
    choice : object or None
        Of a question with choices, the most probable one: a str, or the member of the Enum or
        Literal. With ``multiple``, a tuple of those above 0.5. None if the request was stopped.
    probabilities : dict or None
        Probability of each choice, in the order in which they were given. They sum to 1, except
        with ``multiple``.
    confidence : object
        Of a question with choices, the probability of `choice`. With ``multiple``, how sure the
        model is of the label that it is least sure of: the larger of the probabilities of yes and
        no.
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
    reasoning: str = ""
    grounding: Grounding | None = None
    partial: Any = None
    complete: bool = True
    choice: Any = None
    probabilities: dict[Any, float] | None = None
    confidence: Any = None

    @property
    def boxes(self) -> Boxes:
        """The boxes that the answer writes, in pixels of the upright originals.

        Empty if there are none, or if it is not certain what the numbers mean:
        ``boxes.note`` then says why. docs/data.md has the models that are known.
        """
        found: Boxes = _places().boxes(self)
        return found

    @property
    def points(self) -> Points:
        """The points that the answer writes. See `boxes`."""
        found: Points = _places().points(self)
        return found

    @property
    def annotated(self) -> Image.Image | None:
        """A copy of the image at its original size, on which boxes and points are drawn.

        Of several images it is the first one that has a place, or else the first. None if the
        question had no image. Decoded and drawn at each use.
        """
        found: Image.Image | None = _places().annotated(self)
        return found

    def with_dialect(self, dialect: str = "json", *, scale: Scale | None = None) -> VisionResult:
        """Return the same result with places read from a dialect that you name.

        For models whose way to write places is not known, or that were told another one.

        Parameters
        ----------
        dialect : str
            A name from the table in docs/data.md.
        scale : float or "pixels", optional
            The number that stands for the right and the lower edge of the image, such as 1, 100
            or 1000; "pixels" if the model writes pixels of the image that it saw. By default that
            of the dialect; "json" has none.

        Raises
        ------
        RequestError
            There is no such dialect, or the scale is missing or is none.
        """
        with ShortTraceback():
            found: VisionResult = _places().with_dialect(self, dialect, scale)
        return found

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Restore a pickled result; one of an earlier version has fewer fields, in this order."""
        names = [each.name for each in fields(self)]
        for at, each in enumerate(fields(self)):
            factory = each.default_factory
            default = each.default if factory is MISSING else factory()
            object.__setattr__(self, each.name, state[at] if at < len(state) else default)
        if len(state) <= names.index("complete"):
            object.__setattr__(self, "complete", self.finish_reason == "stop")

    def __str__(self) -> str:
        return self.text


def _places() -> Any:
    """Return what reads places: it is above this layer, where only the public face reaches."""
    return import_module("mlx_magic")._places


# The public module name, which pickles and IPython's formatters use.
VisionResult.__module__ = "mlx_magic"
