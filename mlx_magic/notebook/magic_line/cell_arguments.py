"""The arguments of a ``%%vision`` cell as plain data; needs neither IPython nor a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line
from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, read_options, suggestion
from mlx_magic.notebook.magic_line.tokens import Token, split_line
from mlx_magic.notebook.magic_line.variable_names import check_name
from mlx_magic.options import OPTIONS, RequestOption, Settings


@dataclass(frozen=True, slots=True)
class CellArguments:
    """A ``%%vision`` cell, parsed and checked; nothing is evaluated or opened yet.

    Attributes
    ----------
    prompt : str
        The body as written, with its ``{expressions}``.
    images : tuple of Token
        The IMAGE arguments, in order.
    settings : Settings
        The options: of the line, else the defaults.
    """

    prompt: str
    images: tuple[Token, ...] = ()
    settings: Settings = field(default_factory=Settings)


def parse_cell(line: str, body: str, defaults: Settings | None = None) -> CellArguments:
    """Parse the line and the body of a ``%%vision`` cell.

    Raises
    ------
    RequestError
        For an unknown, planned or incomplete flag, an invalid value, or an empty prompt.
    """
    parsed = read_options(split_line(line), CELL_OPTIONS)
    given = {
        option.name: _value(option, parsed.values[option.name])
        for option in OPTIONS
        if option.name in parsed.values
    }
    settings = (defaults or Settings()).replaced(given)
    if settings.output is not None:
        settings = settings.replaced({"output": check_name(settings.output, "-o ")})
    for option, value in settings:
        if option.check is not None and value is not None:
            option.check(value, option.flag)
    body = _without_cell_options(body)
    if not body.strip():
        raise RequestError(
            "The prompt is empty: write a question below the %%vision line.", option="prompt"
        )
    _ = settings.sampling  # checks its values
    return CellArguments(body, parsed.positional, settings)


def _without_cell_options(body: str) -> str:
    """Return a body without the ``#| option`` lines of Quarto and nbdev at its top."""
    lines = body.splitlines(keepends=True)
    while lines and lines[0].lstrip().startswith("#|"):
        del lines[0]
    return "".join(lines)


def _value(option: RequestOption, text: str) -> object:
    """Return the value of a flag."""
    match option.kind:
        case "integer":
            return _number(option, text, int, "whole number")
        case "number":
            return _number(option, text, float, "number")
        case "texts":
            # A line cannot contain a newline: the two characters ``\n`` stand for it.
            return (text.replace("\\n", "\n"),)
        case "choice":
            return _choice(option, text)
        case "switch":
            return False
        case "optional switch":
            return text == option.flag
    return text


def _number(option: RequestOption, text: str, read: type[int] | type[float], kind: str) -> object:
    try:
        return read(text)
    except ValueError:
        raise RequestError(
            f"{option.flag} is {one_line(text, 40)!r}: use a {kind}.", option=option.name
        ) from None


def _choice(option: RequestOption, text: str) -> str:
    if text not in option.choices:
        hint = suggestion(text, option.choices)
        if hint == ".":
            hint = f": use {', '.join(option.choices[:-1])} or {option.choices[-1]}."
        raise RequestError(
            f"Unknown {option.name} {one_line(text, 40)!r}{hint}", option=option.name
        )
    return text
