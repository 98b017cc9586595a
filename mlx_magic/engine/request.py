"""A request and its sampling parameters: frozen data, validated on creation."""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from mlx_magic.argument_checks import flag as require_flag
from mlx_magic.argument_checks import name as require_name
from mlx_magic.argument_checks import plain, short_repr
from mlx_magic.argument_checks import text as require_text
from mlx_magic.errors import RequestError

if TYPE_CHECKING:
    from mlx_magic.images.opening import ImageInput

OutputFormat = Literal["markdown", "text", "json", "raw"]

DEFAULT_MAX_TOKENS = 512

KV_BITS = (4, 8)
"""Numbers of bits to which the KV cache can be quantized."""

DEMO = "demo"
"""Name of the bundled model."""

MOST_CHOICES = 1_000
"""Maximum number of choices of one question."""

HOLDS = 0.5
"""Probability above which one of several labels holds that do not exclude each other."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. ``None`` is the checkpoint's default.

    Attributes
    ----------
    max_tokens : int
        Upper limit of the answer, in tokens.
    temperature : float or None
        0 is greedy.
    top_p, top_k : float or None, int or None
        Nucleus (0 to 1] and top-k (0 is off) limits.
    seed : int or None
        Makes a sampled answer reproducible.
    min_p : float or None
        Drops tokens below this share of the most likely token's probability; 0 is off.
    repetition_penalty : float or None
        Above 0. Values above 1 make tokens that occurred before less likely; 1 is off.
    stop : tuple of str
        Stop sequences: texts that end the answer, and are not part of it.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "min_p"):
            _set(self, name, plain(getattr(self, name)))
        _set(self, "repetition_penalty", plain(self.repetition_penalty))
        _whole("max_tokens", self.max_tokens, at_least=1)
        _number("temperature", self.temperature)
        _number("top_p", self.top_p)
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise RequestError(
                f"temperature is {short_repr(self.temperature)}: use 0 (greedy) or more.",
                option="temperature",
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RequestError(
                f"top_p is {short_repr(self.top_p)}: use a number above 0, up to 1.", option="top_p"
            )
        if self.top_k is not None:
            _whole("top_k", self.top_k, at_least=0)
        if self.seed is not None:
            _whole("seed", self.seed, at_least=0)
        _number("min_p", self.min_p)
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise RequestError(
                f"min_p is {short_repr(self.min_p)}: use a number from 0 (off) to 1.",
                option="min_p",
            )
        _positive("repetition_penalty", self.repetition_penalty, unit="number")
        _texts("stop", self.stop)


_set = object.__setattr__
"""Sets a field of a frozen dataclass that is being created."""


def _number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise RequestError(f"{name} is {short_repr(value)}: use a number.", option=name)
    try:
        float(value or 0)
    except OverflowError:
        raise RequestError(
            f"{name} is {short_repr(value)}: use a smaller number.", option=name
        ) from None


def _positive(name: str, value: float | None, *, unit: str) -> None:
    _number(name, value)
    if value is not None and not 0 < value < float("inf"):
        raise RequestError(f"{name} is {short_repr(value)}: use a {unit} above 0.", option=name)


def _texts(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
        raise RequestError(
            f"{name} is {short_repr(value)}: use str, none of them empty.", option=name
        )
    for text in value:
        require_text(name, text)


def _whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise RequestError(
            f"{name} is {short_repr(value)}: use a whole number of {at_least} or more.", option=name
        )
    if name == "seed" and value >= 2**64:
        # Reduced to 64 bits it would give the answers of another seed.
        raise RequestError(
            f"{name} is {short_repr(value)}, which has more than 64 bits: use a number below "
            "2**64.",
            option=name,
        )
    # MLX's integers have 64 bits, with a sign.
    if name != "seed" and value >= 2**63:
        raise RequestError(f"{name} is {short_repr(value)}: use a smaller number.", option=name)


def check_kv_bits(value: object, name: str = "kv_bits") -> None:
    """Refuse a value to which the KV cache cannot be quantized.

    Raises
    ------
    RequestError
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if value is not None and not (whole and value in KV_BITS):
        raise RequestError(f"{name} is {short_repr(value)}: use 4 or 8.", option="kv_bits")


def check_think(value: object, name: str = "think") -> None:
    """Refuse a value that is neither None nor a bool.

    Raises
    ------
    RequestError
    """
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} is {short_repr(value)}: use True or False.", option="think")


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers among which a model chooses.

    Attributes
    ----------
    labels : tuple of str
        Text of each answer, as the model would write it.
    values : tuple of object
        What the result gives for each answer: the label, or a member of an Enum.
    """

    labels: tuple[str, ...]
    values: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        _set(self, "labels", tuple(_label(label) for label in self.labels))
        _set(self, "values", self.values or self.labels)
        if len(self.labels) < 2:
            raise RequestError(
                f"choices has {'only one answer' if self.labels else 'no answers'}: "
                "give two or more.",
                option="choices",
            )
        if len(self.labels) > MOST_CHOICES:
            raise RequestError(
                f"choices has {len(self.labels):,} answers: give {MOST_CHOICES:,} or fewer.",
                option="choices",
            )
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise RequestError(
                    f"choices has {short_repr(label)} twice: each answer must differ.",
                    option="choices",
                )
            seen.add(label)

    def write(self, value: object) -> str:
        """Return the text of a choice, for an example.

        Raises
        ------
        RequestError
            There is no such choice.
        """
        for label, known in zip(self.labels, self.values, strict=True):
            if value is known or (type(value) is type(known) and value == known) or value == label:
                return label
        raise RequestError(
            f"An example has the answer {short_repr(value)}, which is none of the choices.",
            option="examples",
        )

    @property
    def digest(self) -> str:
        """Digest (hex) of what the model is asked, the same in every process."""
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()


def _label(label: object) -> str:
    # Chat templates trim answers, so that a model never sees the spaces around them.
    text = require_text("choices", label).strip()
    if not text:
        raise RequestError("choices has an empty answer: remove it.", option="choices")
    return text


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question of a conversation and its answer.

    Attributes
    ----------
    prompt, answer : str
    images : tuple of ImageInput
        The images of the question.
    """

    prompt: str
    answer: str
    images: tuple[ImageInput, ...] = ()


class AnswerSchema(Protocol):
    """The shape of an answer; see `mlx_magic.data.schema.Schema`."""

    @property
    def grammar(self) -> str:
        """Grammar of the answer, for llguidance, in Lark's notation."""

    @property
    def instructions(self) -> str:
        """What is added to the question; may be empty."""

    @property
    def key(self) -> str:
        """Equal for equal schemas, also in another process."""

    def read(self, text: str) -> tuple[Any, str | None]:
        """Return the object of a whole answer, and None or why there is none."""

    def partial(self, text: str) -> Any:
        """Return the fields or items that are whole, of an answer that was cut."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One question to one model.

    Attributes
    ----------
    prompt : str
        The question; never empty.
    images : tuple of ImageInput
        Images, in the order in which the model gets them.
    model : str
        Alias, folder or Hub repository id.
    system : str or None
        System prompt.
    sampling : Sampling
    format : {"markdown", "text", "json", "raw"}
        How the answer is displayed; ``"json"`` also parses it.
    history : tuple of Exchange
        The earlier turns of the conversation, oldest first.
    timeout : float or None
        Seconds from the request, after which the answer ends with the text so far.
    kv_bits : {4, 8} or None
        Bits to which the KV cache is quantized, to save memory; None is not quantized.
    think : bool or None
        Whether the model thinks before it answers; None is the chat template's default.
    background : bool
        Whether other requests go first: nobody waits for this one alone, such as for one of a map.
    schema : AnswerSchema or None
        The shape of the answer; None leaves it to the model.
    choices : Choices or None
        The answers among which the model chooses: their probabilities are read, and nothing is
        generated.
    multiple : bool
        Whether several of the choices may hold: each is asked about, yes or no.
    """

    prompt: str
    images: tuple[ImageInput, ...] = ()
    model: str = DEMO
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    format: OutputFormat = "markdown"
    history: tuple[Exchange, ...] = ()
    timeout: float | None = None
    kv_bits: int | None = None
    think: bool | None = None
    background: bool = False
    schema: AnswerSchema | None = None
    choices: Choices | None = None
    multiple: bool = False

    def __post_init__(self) -> None:
        for name in ("timeout", "kv_bits"):
            _set(self, name, plain(getattr(self, name)))
        _set(self, "prompt", require_text("prompt", self.prompt))
        if self.system is not None:
            _set(self, "system", require_text("system", self.system))
        require_name("model", self.model)
        form: object = self.format  # may be of any type at runtime
        if not isinstance(form, str) or form not in get_args(OutputFormat):
            raise RequestError(
                f"format is {short_repr(self.format)}: "
                f"use one of {', '.join(get_args(OutputFormat))}.",
                option="format",
            )
        _set(self, "format", str.__str__(form))
        if not self.prompt.strip():
            raise RequestError("The prompt is empty: write a question.", option="prompt")
        _positive("timeout", self.timeout, unit="number of seconds")
        check_kv_bits(self.kv_bits)
        check_think(self.think)
        if self.schema is not None and not isinstance(getattr(self.schema, "grammar", None), str):
            raise RequestError(
                f"schema is {short_repr(self.schema)}: use mlx_magic.data.schema.schema_of.",
                option="schema",
            )
        self._check_choices()

    @property
    def with_instructions(self) -> GenerationRequest:
        """The request whose question also tells the model of the schema."""
        if self.schema is None or not self.schema.instructions.strip():
            return self
        return replace(self, prompt=f"{self.prompt}\n\n{self.schema.instructions}")

    def chosen(self, probabilities: Sequence[float]) -> tuple[int, ...]:
        """Return the positions of the choices that are the answer.

        Parameters
        ----------
        probabilities : sequence of float
            One for each choice.

        Returns
        -------
        tuple of int
            The most probable one; with ``multiple`` those above `HOLDS`, which may be none.
        """
        if self.multiple:
            return tuple(at for at, value in enumerate(probabilities) if value > HOLDS)
        return (max(range(len(probabilities)), key=probabilities.__getitem__),)

    def _check_choices(self) -> None:
        """Refuse options that contradict `choices`."""
        _set(self, "multiple", require_flag("multiple", self.multiple))
        if self.choices is None:
            if self.multiple:
                raise RequestError(
                    "multiple needs choices: name the labels with choices.", option="multiple"
                )
            return
        if not isinstance(self.choices, Choices):
            raise RequestError(
                f"choices is {short_repr(self.choices)}: use Choices.", option="choices"
            )
        if self.schema is not None:
            raise RequestError(
                "choices and schema exclude each other: leave one of them out.", option="choices"
            )
        if self.format == "json":
            raise RequestError(
                "choices and the format json exclude each other: the result has choice and "
                "probabilities.",
                option="format",
            )
        if self.think:
            raise RequestError(
                "choices and think exclude each other: choices are scored without thoughts.",
                option="think",
            )
