"""The arguments of a ``%%vision`` cell as plain data; needs neither IPython nor a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from mlx_magic.engine.request import (
    DEFAULT_MAX_TOKENS,
    OutputFormat,
    Sampling,
    check_kv_bits,
)
from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line
from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, FORMATS, read_options, suggestion
from mlx_magic.notebook.magic_line.tokens import Token, split_line
from mlx_magic.notebook.magic_line.variable_names import check_name


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults of the flags: the values of ``%config VisionMagics``.

    Attributes
    ----------
    model, output, system : str or None
    max_tokens : int
    temperature, top_p, top_k, seed : float, float, int, int, or None
        None uses the checkpoint's default.
    min_p, repetition_penalty : float or None
    stop : tuple of str
    timeout : float or None
        Seconds.
    kv_bits : int or None
    format : {"markdown", "text", "json", "raw"}
    show : bool
    max_pixels : int or None
    """

    model: str | None = None
    output: str | None = None
    system: str | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    format: OutputFormat = "markdown"
    show: bool = True
    max_pixels: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    kv_bits: int | None = None

    @property
    def sampling(self) -> Sampling:
        """The default sampling parameters."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
        )


@dataclass(frozen=True, slots=True)
class CellArguments:
    """A ``%%vision`` cell, parsed and checked; nothing is evaluated or opened yet.

    Attributes
    ----------
    prompt : str
        The body as written, with its ``{expressions}``.
    images : tuple of Token
        The IMAGE arguments, in order.
    model, output, system : str or None
    sampling : Sampling
    format : {"markdown", "text", "json", "raw"}
    show : bool
    max_pixels : int or None
    timeout : float or None
        Seconds.
    kv_bits : int or None
    """

    prompt: str
    images: tuple[Token, ...] = ()
    model: str | None = None
    output: str | None = None
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    format: OutputFormat = "markdown"
    show: bool = True
    max_pixels: int | None = None
    timeout: float | None = None
    kv_bits: int | None = None


def parse_cell(line: str, body: str, defaults: Defaults | None = None) -> CellArguments:
    """Parse the line and the body of a ``%%vision`` cell.

    Raises
    ------
    RequestError
        For an unknown, planned or incomplete flag, an invalid value, or an empty prompt.
    """
    defaults = defaults or Defaults()
    parsed = read_options(split_line(line), CELL_OPTIONS)
    given = parsed.values
    output = given.get("output", defaults.output)
    if output is not None:
        output = check_name(output, "-o ")
    if not body.strip():
        raise RequestError(
            "The prompt is empty: write a question below the %%vision line.", option="prompt"
        )
    return CellArguments(
        prompt=body,
        images=parsed.positional,
        model=_non_empty("model", given, defaults.model),
        output=output,
        system=given.get("system", defaults.system),
        sampling=Sampling(
            max_tokens=_integer("max_tokens", given, defaults.max_tokens),
            temperature=_number("temperature", given, defaults.temperature),
            top_p=_number("top_p", given, defaults.top_p),
            top_k=_optional_integer("top_k", given, defaults.top_k),
            seed=_optional_integer("seed", given, defaults.seed),
            min_p=_number("min_p", given, defaults.min_p),
            repetition_penalty=_number("repetition_penalty", given, defaults.repetition_penalty),
            stop=_stop(given, defaults.stop),
        ),
        format=_format(given.get("format", defaults.format)),
        show=defaults.show and "no_show" not in given,
        max_pixels=_pixels(given, defaults.max_pixels),
        timeout=_seconds(given, defaults.timeout),
        kv_bits=_bits(given, defaults.kv_bits),
    )


def _non_empty(name: str, given: dict[str, str], default: str | None) -> str | None:
    value = given.get(name, default)
    if value is not None and not value.strip():
        raise RequestError(f"--{name} is empty.", option=name)
    return value


def _format(value: str) -> OutputFormat:
    if value not in FORMATS:
        hint = suggestion(value, FORMATS)
        if hint == ".":
            hint = f": use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        raise RequestError(f"Unknown format {one_line(value, 40)!r}{hint}", option="format")
    return cast("OutputFormat", value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _integer(name: str, given: dict[str, str], default: int) -> int:
    if name not in given:
        return default
    try:
        return int(given[name])
    except ValueError:
        raise RequestError(
            f"{_flag(name)} is {one_line(given[name], 40)!r}: use a whole number.", option=name
        ) from None


def _optional_integer(name: str, given: dict[str, str], default: int | None) -> int | None:
    return _integer(name, given, 0) if name in given else default


def _number(name: str, given: dict[str, str], default: float | None) -> float | None:
    if name not in given:
        return default
    try:
        return float(given[name])
    except ValueError:
        raise RequestError(
            f"{_flag(name)} is {one_line(given[name], 40)!r}: use a number.", option=name
        ) from None


def _stop(given: dict[str, str], default: tuple[str, ...]) -> tuple[str, ...]:
    if "stop" not in given:
        return default
    # A line cannot contain a newline: the two characters ``\n`` stand for it.
    return (given["stop"].replace("\\n", "\n"),)


def _seconds(given: dict[str, str], default: float | None) -> float | None:
    value = _number("timeout", given, default)
    if value is not None and not 0 < value < float("inf"):
        raise RequestError(
            f"--timeout is {value}: use a number of seconds above 0.", option="timeout"
        )
    return value


def _bits(given: dict[str, str], default: int | None) -> int | None:
    value = _optional_integer("kv_bits", given, default)
    check_kv_bits(value, "--kv-bits")
    return value


def _pixels(given: dict[str, str], default: int | None) -> int | None:
    value = _optional_integer("max_pixels", given, default)
    if value is not None and value < 1:
        raise RequestError(
            f"--max-pixels is {value}: use a whole number of 1 or more.", option="max_pixels"
        )
    return value
