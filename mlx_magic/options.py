"""The options of a question: one table for traits, flags, help, completion, panel and export.

The signatures of `mlx_magic.ask` and `mlx_magic.stream` are written out; a test compares them
with the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlx_magic.engine.request import (
    DEFAULT_MAX_TOKENS,
    DEMO,
    Exchange,
    GenerationRequest,
    OutputFormat,
    Sampling,
    check_kv_bits,
    check_think,
)
from mlx_magic.errors import RequestError

Kind = Literal[
    "text", "integer", "number", "texts", "choice", "switch", "optional switch", "flag",
    "text or off", "expression",
]  # fmt: skip

FORMATS: tuple[str, ...] = get_args(OutputFormat)


def _above_zero(value: float, name: str) -> None:
    if not 0 < value < float("inf"):
        raise RequestError(f"{name} is {value}: use a number of seconds above 0.", option="timeout")


def _one_or_more(value: int, name: str) -> None:
    if value < 1:
        raise RequestError(
            f"{name} is {value}: use a whole number of 1 or more.", option="max_pixels"
        )


def _first_images(value: int, name: str) -> None:
    if value < 1:
        raise RequestError(f"{name} is {value}: use a whole number of 1 or more.", option="limit")


def _not_empty(value: str, name: str) -> None:
    if not value.strip():
        raise RequestError(f"{name} is empty.", option=name.lstrip("-"))


@dataclass(frozen=True, slots=True)
class RequestOption:
    """An option of a question.

    Attributes
    ----------
    name : str
        Name of the trait, of the keyword and, with dashes, of the flag.
    kind : str
        See `Kind`. A switch is on by default; its flag ``--no-name`` turns it off. An optional
        switch has both flags, and without them leaves the matter to the checkpoint. A flag is off
        by default. A text or off has a second flag ``--no-name`` without a value. An expression is
        evaluated in the notebook; its setting is any value.
    help : str
        One line.
    metavar : str
        Name of its value in the help.
    target : {"sampling", "request", "images", "cell"}
        What takes the value: `Sampling`, `GenerationRequest`, the opening of the images, or the
        cell alone. Options of a cell alone are neither copied nor exported.
    affects_answer : bool
        Whether the text of the answer can depend on it.
    default : object
        None leaves the value to the checkpoint, or sets no limit.
    short : str
        Short flag.
    off : object
        Value that turns it off, where None means the checkpoint's default.
    choices : tuple of str
        Values of a choice.
    check : callable or None
        Takes a value and the name to use in the error; raises RequestError. Values that
        `Sampling` or `GenerationRequest` check need none.
    """

    name: str
    kind: Kind
    help: str
    metavar: str = ""
    target: Literal["sampling", "request", "images", "cell"] = "request"
    affects_answer: bool = True
    default: Any = None
    short: str = ""
    off: object = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any, str], None] | None = None

    @property
    def flag(self) -> str:
        """The long flag; of an optional switch, the one that turns it on."""
        name = self.name.replace("_", "-")
        return f"--no-{name}" if self.kind == "switch" else f"--{name}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, the short one first; of an optional switch, those for on and off."""
        if self.kind in ("optional switch", "text or off"):
            return (self.flag, f"--no-{self.flag.removeprefix('--')}")
        return (self.short, self.flag) if self.short else (self.flag,)


OPTIONS: tuple[RequestOption, ...] = (
    RequestOption(
        "model", "text", "alias, folder or Hub repository id", "MODEL", short="-m", check=_not_empty
    ),
    RequestOption(
        "output", "text", "store the result in this variable", "NAME", "cell", False, short="-o"
    ),
    RequestOption("system", "text", "system prompt", "TEXT"),
    RequestOption(
        "max_tokens",
        "integer",
        "maximum answer length, in tokens",
        "N",
        "sampling",
        default=DEFAULT_MAX_TOKENS,
    ),
    RequestOption("temperature", "number", "0 is greedy", "T", "sampling"),
    RequestOption("top_p", "number", "nucleus sampling: above 0, up to 1", "P", "sampling"),
    RequestOption("top_k", "integer", "only the K most likely; 0 is off", "K", "sampling", off=0),
    RequestOption(
        "min_p", "number", "minimum share of the top probability", "P", "sampling", off=0
    ),
    RequestOption(
        "repetition_penalty", "number", "above 1: repeat less; 1 is off", "R", "sampling", off=1
    ),
    RequestOption("seed", "integer", "makes sampling reproducible", "N", "sampling"),
    RequestOption(
        "stop", "texts", "stop before this text; \\n: newline", "TEXT", "sampling", default=()
    ),
    RequestOption(
        "timeout", "number", "stop after S seconds, keep the text", "S", check=_above_zero
    ),
    RequestOption(
        "think",
        "optional switch",
        "think before the answer, or not",
        check=check_think,
    ),
    RequestOption(
        "choices", "expression", "choose one: list of str, Enum, Literal", "EXPR", default=None
    ),
    RequestOption("multiple", "flag", "each choice yes or no", default=False),
    RequestOption(
        "format",
        "choice",
        "how the answer is shown",
        "|".join(FORMATS),
        affects_answer=False,
        default="markdown",
        short="-f",
        choices=FORMATS,
    ),
    RequestOption(
        "show",
        "switch",
        "show nothing, only keep the result",
        target="cell",
        affects_answer=False,
        default=True,
    ),
    RequestOption(
        "map",
        "flag",
        "ask each image by itself: a table",
        target="cell",
        affects_answer=False,
        default=False,
    ),
    RequestOption(
        "limit",
        "integer",
        "with --map: only the first N images",
        "N",
        target="cell",
        affects_answer=False,
        check=_first_images,
    ),
    RequestOption(
        "journal",
        "text or off",
        "with --map: its journal, or none",
        "PATH",
        target="cell",
        affects_answer=False,
    ),
    RequestOption(
        "max_pixels",
        "integer",
        "scale larger images to N pixels",
        "N",
        "images",
        check=_one_or_more,
    ),
    RequestOption(
        "normalize",
        "switch",
        "keep the numbers of deep images",
        target="images",
        default=True,
    ),
    RequestOption("schema", "text", "the shape of the answer: a class, a type, fields", "EXPR"),
    RequestOption(
        "kv_bits", "integer", "quantize the KV cache: less memory", "4|8", check=check_kv_bits
    ),
)


class Settings:
    """A value for every option of a question, as attributes.

    Parameters
    ----------
    **values
        By name of the option; the others have their defaults.

    Raises
    ------
    TypeError
        There is no option of that name.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: object) -> None:
        defaults: dict[str, object] = {option.name: option.default for option in OPTIONS}
        if unknown := values.keys() - defaults.keys():
            raise TypeError(f"There is no option {', '.join(sorted(unknown))}.")
        self._values = {**defaults, **values}

    def __getattr__(self, name: str) -> Any:
        if name == "_values":  # while it is unpickled or copied
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"There is no option {name}.") from None

    def __iter__(self) -> Iterator[tuple[RequestOption, Any]]:
        """Iterate over the options and their values, in the order of the table."""
        return iter([(option, self._values[option.name]) for option in OPTIONS])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._values == other._values

    def __repr__(self) -> str:
        given = (f"{o.name}={value!r}" for o, value in self if value != o.default)
        return f"Settings({', '.join(given)})"

    def replaced(self, values: Mapping[str, object]) -> Settings:
        """Return settings with other values for some options."""
        return Settings(**{**self._values, **values})

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters; their values are checked here."""
        return Sampling(**self._of("sampling"))

    def request(
        self, prompt: str, *, model: str | None = None, history: tuple[Exchange, ...] = ()
    ) -> GenerationRequest:
        """Return a request with these settings, without its images.

        Raises
        ------
        RequestError
            A value cannot be used, or the prompt is empty.
        """
        values = self._of("request")
        values["model"] = model or values["model"] or DEMO
        return GenerationRequest(prompt=prompt, sampling=self.sampling, history=history, **values)

    def _of(self, target: str) -> dict[str, Any]:
        return {option.name: value for option, value in self if option.target == target}
