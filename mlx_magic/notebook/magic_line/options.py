"""The flags of the magics, their help, and the arguments of a ``%%vision`` cell that they make.

The flags are those of questions (see `mlx_magic.options`) and of commands. Nothing here needs
IPython or a model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_magic.data.choices import read_choices
from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import Evaluate, Expression, one_line
from mlx_magic.notebook.magic_line.tokens import Token, split_line
from mlx_magic.notebook.magic_line.variable_names import check_name
from mlx_magic.options import OPTIONS, RequestOption, Settings


@dataclass(frozen=True, slots=True)
class Option:
    """A flag.

    Attributes
    ----------
    name : str
        Name of the value in Python.
    flags : tuple of str
        Its spellings, the short one first.
    metavar : str
        Name of its value in the help; ``""`` for a switch.
    help : str
        One line.
    trait : str
        Its trait ``%config VisionMagics.…``; ``""`` if it has none.
    available : bool
        False for a planned flag: using it is an error.
    bare : tuple of str
        Those of its spellings that take no value although the others do.
    """

    name: str
    flags: tuple[str, ...]
    metavar: str = ""
    help: str = ""
    trait: str = ""
    available: bool = True
    bare: tuple[str, ...] = ()


def _of(option: RequestOption) -> Option:
    """Return the flags of an option of a question."""
    bare = option.flags[-1:] if option.kind == "text or off" else ()
    return Option(option.name, option.flags, option.metavar, option.help, option.name, bare=bare)


def _planned(*flags: str) -> Option:
    return Option(flags[-1].lstrip("-"), flags, available=False)


CELL_OPTIONS = (
    *(_of(each) for each in OPTIONS),
    _planned("-c", "--chat"),
    _planned("--reset"),
    _planned("--detach"),
)

LINE_OPTIONS: dict[str, tuple[Option, ...]] = {
    "load": (
        Option("as", ("--as",), "ALIAS", "a short name for it"),
        Option(
            "trust_remote_code",
            ("--trust-remote-code",),
            "",
            "run the checkpoint's own Python code, this load only",
        ),
        Option("pin", ("--pin",), "", "never evict it"),
        Option("adapter", ("--adapter",), "PATH", "a LoRA adapter's folder, loaded with it"),
        Option("save", ("--save",), "", "save the alias for all notebooks"),
    ),
    "unload": (
        Option("all", ("--all",), "", "every model"),
        Option("force", ("--force",), "", "cancel the requests that use it first"),
    ),
    "pin": (),
    "unpin": (),
    "list": (),
    "models": (),
    "status": (),
    "use": (),
    "cancel": (),
    "panel": (),
    "journal": (
        Option("export", ("--export",), "PATH", "write the answers as lines of JSON"),
        Option("forget", ("--forget",), "", "delete the answers of map N, or of all"),
        Option("journal", ("--journal",), "PATH", "another journal than the notebook's own"),
    ),
    "help": (),
}

MODEL_VERBS = ("load", "use", "pin", "unpin", "models")
"""Commands that require a MODEL."""

SETTINGS = (
    Option(
        "memory_budget",
        (),
        "'8 GB', 0.6",
        "memory for models; None: no limit",
        "memory_budget",
    ),
    Option("idle_ttl", (), "SECONDS", "unload after this idle time; None: never", "idle_ttl"),
    Option("schema_prompt", (), "TEXT", "tells the model of a {schema}; '': not", "schema_prompt"),
    Option("model_folders", (), "FOLDERS", "with models, besides the Hub's cache", "model_folders"),
)
"""Settings that have a trait but no flag."""


@dataclass(frozen=True, slots=True)
class ParsedOptions:
    """A parsed line: positional words and values of flags.

    Attributes
    ----------
    positional : tuple of Token
        Words that belong to no flag, in order.
    values : dict
        Value of each given flag, by `Option.name`; a flag without a value is its own value.
    """

    positional: tuple[Token, ...] = ()
    values: dict[str, str] = field(default_factory=dict)


def read_options(tokens: Iterable[Token], options: Sequence[Option]) -> ParsedOptions:
    """Separate flags, their values and positional words.

    ``--flag value`` and ``--flag=value`` are the same; a value may start with a dash
    (``--temperature -1``) unless it is a flag itself; flags cannot be shortened; after ``--``
    every word is positional, and so is every word in quotes.

    Raises
    ------
    RequestError
        For an unknown, repeated or planned flag, a missing value, or a value for a switch.
    """
    by_flag = {flag: option for option in options for flag in option.flags}
    remaining = list(tokens)
    positional: list[Token] = []
    values: dict[str, str] = {}
    while remaining:
        token = remaining.pop(0)
        if token.raw == "--":
            positional += remaining
            break
        if token.quoted or not _looks_like_flag(token.raw):
            positional.append(token)
            continue
        flag, equals, value = token.text.partition("=")
        option = _option(flag, by_flag)
        if option.name in values:
            first = values[option.name] if not option.metavar else option.flags[0]
            both = f"{first} and {flag} exclude each other."
            twice = f"{flag} is given twice."
            differ = (not option.metavar and first != flag) or flag in option.bare
            raise RequestError(both if differ else twice, option=option.name)
        if not option.metavar or flag in option.bare:
            if equals:
                raise RequestError(f"{flag} takes no value.", option=option.name)
            value = flag
        elif not equals:
            value = _next_value(flag, option, remaining, by_flag)
        values[option.name] = value
    return ParsedOptions(tuple(positional), values)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` if a known word is similar to `word`, else ``"."``."""
    known = list(known)
    completed = [name for name in known if len(word) > 2 and name.startswith(word)]
    close = completed or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _looks_like_flag(raw: str) -> bool:
    return len(raw) > 1 and raw.startswith("-")


def _option(flag: str, by_flag: dict[str, Option]) -> Option:
    option = by_flag.get(flag)
    if option is None:
        known = [name for name, known in by_flag.items() if known.available]
        hint = suggestion(flag, known)
        raise RequestError(f"Unknown flag {one_line(flag, 40)}{hint}", option=flag.lstrip("-"))
    if not option.available:
        raise RequestError(f"{flag} is not available yet.", option=option.name)
    return option


def _next_value(
    flag: str, option: Option, remaining: list[Token], by_flag: dict[str, Option]
) -> str:
    following = remaining[0] if remaining else None
    if following is None or (
        not following.quoted and following.text.partition("=")[0] in {*by_flag, "--"}
    ):
        raise RequestError(f"{flag} needs a value: {flag} {option.metavar}.", option=option.name)
    return remaining.pop(0).text


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
    if settings.schema is not None and settings.format == "markdown":
        if "format" in given:
            raise RequestError(
                "--schema makes the answer JSON: leave out -f markdown, or use text, json or raw.",
                option="format",
            )
        settings = settings.replaced({"format": "json"})
    if settings.output is not None:
        settings = settings.replaced({"output": check_name(settings.output, "-o ")})
    for option, value in settings:
        unknown = value is None or isinstance(value, Expression)
        if option.check is not None and not unknown:
            option.check(value, option.flag)
    body = _without_cell_options(body)
    if not body.strip():
        raise RequestError(
            "The prompt is empty: write a question below the %%vision line.", option="prompt"
        )
    if not settings.map and (extra := [f for f in ("limit", "journal") if f in given]):
        raise RequestError(f"--{extra[0]} is for a map: add --map.", option=extra[0])
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
        case "flag":
            return True
        case "text or off":
            return False if text == option.flags[-1] else text
        case "expression":
            return Expression(text)
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


_CELL_HEAD = """\
Ask a vision-language model about images.

    %%vision [IMAGE ...] [OPTIONS]
    prompt

IMAGE is a path, a glob, a URL or any Python expression of the notebook. If a file of that name
exists, it is used. Quote names that contain spaces. In the prompt, {expression} is replaced by
its value in the notebook. Write {{ for a literal brace.
"""

_CELL_TAIL = """\
Examples
    %%vision receipt.jpg                     %%vision photos/*.jpg -o answer
    What is the total?                       Which of these show a dog?

    %%vision [before, after] --temperature 0 -f json
    List what changed as JSON, for a reader of {language}.

    %%vision photos --map -o table
    What is in this photo? One word.

The result is in _ (and in NAME with -o). Cancel keeps the text written so far.
"""

_LINE_TEXT = {
    "load": ("MODEL", "load a model, downloading it if needed"),
    "unload": ("MODEL", "free its memory, once no request uses it"),
    "pin": ("MODEL", "never evict it"),
    "unpin": ("MODEL", "allow it to be evicted"),
    "list": ("", "the models in memory and on disk"),
    "models": ("MODEL", "describe a model, without loading it"),
    "status": ("", "what is loaded and running, memory, device"),
    "use": ("MODEL", "make it the default model"),
    "cancel": ("", "cancel everything that runs or waits"),
    "panel": ("", "open the panel"),
    "journal": ("[N|all]", "the stored answers of maps"),
    "help": ("", "this text"),
}

HELP_FLAGS = ("--help", "-h")

_LINE_HEAD = """\
Manage the models of %%vision.

"""

_LINE_TAIL = """\
MODEL is an alias, a folder or a Hub repository id. --save stores an alias for all notebooks, in
~/.config/mlx-magic/aliases.toml. You may edit that file.

Examples
    %vision load mlx-community/Qwen2.5-VL-3B-Instruct-4bit --as qwen
    %vision use qwen
    %vision unload --all
"""


_OPTIONS_HEAD = f"{'Options':<40} {'':<37} %config VisionMagics."


def asks_for_help(line: str) -> bool:
    """Whether a magic's line has a flag for help."""
    return any(token.raw in HELP_FLAGS for token in split_line(line))


def help_text(kind: Literal["cell", "line"]) -> str:
    """Return the help of ``%%vision`` ("cell") or ``%vision`` ("line")."""
    if kind == "cell":
        rows = [_row(option) for option in CELL_OPTIONS if option.available]
        return "\n".join([_CELL_HEAD, _OPTIONS_HEAD, *rows, "", _CELL_TAIL])
    rows = []
    for verb, options in LINE_OPTIONS.items():
        metavar, text = _LINE_TEXT[verb]
        rows.append(f"    {f'%vision {verb} {metavar}':<36} {text}")
        rows += [_row(option, indent=8) for option in options if option.available]
    settings = [_row(option) for option in SETTINGS]
    head = _OPTIONS_HEAD.replace("Options ", "Settings")
    return "\n".join([_LINE_HEAD + "Commands", *rows, "", head, *settings, "", _LINE_TAIL])


def _row(option: Option, indent: int = 4) -> str:
    spelling = f"{', '.join(option.flags)} {option.metavar}".strip()
    return f"{'':{indent}}{spelling:<{40 - indent}} {option.help:<37} {option.trait}".rstrip()


def evaluated(settings: Settings, variables: Mapping[str, object], evaluate: Evaluate) -> Settings:
    """Return the settings of a cell with their expressions evaluated in the notebook.

    Raises
    ------
    RequestError
        An expression fails, or its value cannot be used.
    """
    values = {
        option.name: value.value(option.flag, variables, evaluate)
        for option, value in settings
        if isinstance(value, Expression)
    }
    settings = settings.replaced(values)
    return settings.replaced({"choices": read_choices(settings.choices)})
