"""The command of a ``%vision`` line, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line
from mlx_magic.notebook.magic_line.options import (
    HELP_FLAGS,
    LINE_OPTIONS,
    MODEL_VERBS,
    ParsedOptions,
    read_options,
    suggestion,
)
from mlx_magic.notebook.magic_line.tokens import split_line


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """Load a model, optionally with an adapter and an alias."""

    model: str
    alias: str | None = None
    trust_remote_code: bool = False
    pin: bool = False
    adapter: str | None = None
    save: bool = False


@dataclass(frozen=True, slots=True)
class UnloadCommand:
    """Unload one model, or all if `model` is None."""

    model: str | None
    force: bool = False


@dataclass(frozen=True, slots=True)
class PinCommand:
    """Pin a model, or unpin it."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class ListCommand:
    """List the models."""


@dataclass(frozen=True, slots=True)
class ModelsCommand:
    """Describe a model without loading it."""

    model: str


@dataclass(frozen=True, slots=True)
class StatusCommand:
    """Show loaded models, running requests and memory."""


@dataclass(frozen=True, slots=True)
class UseCommand:
    """Make a model the default."""

    model: str


@dataclass(frozen=True, slots=True)
class CancelCommand:
    """Cancel everything that runs or waits."""


@dataclass(frozen=True, slots=True)
class PanelCommand:
    """Open the panel."""


@dataclass(frozen=True, slots=True)
class JournalCommand:
    """List the maps of a journal, export answers, or forget them.

    Attributes
    ----------
    number : int or None
        The map; None is all of them.
    export : str or None
        File to write to.
    forget : bool
    path : str or None
        The journal; None is the notebook's own.
    """

    number: int | None = None
    export: str | None = None
    forget: bool = False
    path: str | None = None


@dataclass(frozen=True, slots=True)
class HelpCommand:
    """Show the help of ``%vision``."""


Command = (
    LoadCommand
    | UnloadCommand
    | PinCommand
    | ListCommand
    | ModelsCommand
    | StatusCommand
    | UseCommand
    | CancelCommand
    | PanelCommand
    | JournalCommand
    | HelpCommand
)


def parse_line(line: str) -> Command:
    """Parse a line after ``%vision``.

    Raises
    ------
    RequestError
        For an unknown subcommand, an unknown or planned flag, missing or extra arguments.
    """
    tokens = split_line(line)
    if not tokens:
        return StatusCommand()
    if any(token.raw in HELP_FLAGS for token in tokens):
        return HelpCommand()
    verb = tokens[0].text
    if verb not in LINE_OPTIONS:
        hint = suggestion(verb, LINE_OPTIONS)
        if hint == ".":
            hint = f": use one of {', '.join(LINE_OPTIONS)}; questions start with %%vision."
        raise RequestError(f"Unknown subcommand {one_line(verb, 40)!r}{hint}", option="subcommand")
    return _command(verb, read_options(tokens[1:], LINE_OPTIONS[verb]))


def _command(verb: str, parsed: ParsedOptions) -> Command:
    all_models = "all" in parsed.values
    if verb in MODEL_VERBS or (verb == "unload" and not all_models):
        return _model_command(verb, parsed)
    if verb == "journal":
        return _journal_command(parsed)
    if parsed.positional:
        raise RequestError(
            f"%vision {verb}{' --all' if all_models else ''} takes no arguments: "
            f"remove {one_line(parsed.positional[0].raw, 40)!r}.",
            option=verb,
        )
    if verb == "unload":
        return UnloadCommand(None, "force" in parsed.values)
    simple: dict[str, Command] = {
        "list": ListCommand(),
        "status": StatusCommand(),
        "cancel": CancelCommand(),
        "panel": PanelCommand(),
        "help": HelpCommand(),
    }
    return simple[verb]


def _journal_command(parsed: ParsedOptions) -> JournalCommand:
    words = [token.text for token in parsed.positional]
    all_maps = words == ["all"]
    if len(words) > 1 or (words and not all_maps and not words[0].isdecimal()):
        raise RequestError(
            f"%vision journal takes the number of a map, not {one_line(words[-1], 40)!r}.",
            option="journal",
        )
    if "export" in parsed.values and "forget" in parsed.values:
        raise RequestError("--export and --forget exclude each other.", option="journal")
    if "forget" in parsed.values and not words:
        raise RequestError("--forget needs the number of a map, or all.", option="forget")
    if words and not parsed.values.keys() & {"export", "forget"}:
        raise RequestError(
            "%vision journal lists all maps: add --export or --forget to a number.",
            option="journal",
        )
    return JournalCommand(
        int(words[0]) if words and not all_maps else None,
        parsed.values.get("export"),
        "forget" in parsed.values,
        parsed.values.get("journal"),
    )


def _model_command(verb: str, parsed: ParsedOptions) -> Command:
    names = [token.text for token in parsed.positional]
    if not names or not names[0]:
        alternative = " (or --all)" if verb == "unload" else ""
        raise RequestError(f"%vision {verb} needs a MODEL{alternative}.", option="model")
    if len(names) > 1:
        raise RequestError(
            f"%vision {verb} takes one MODEL, not {len(names)}: quote names that contain spaces.",
            option="model",
        )
    if verb == "use":
        return UseCommand(names[0])
    if verb == "models":
        return ModelsCommand(names[0])
    if verb == "unload":
        return UnloadCommand(names[0], "force" in parsed.values)
    if verb in ("pin", "unpin"):
        return PinCommand(names[0], verb == "pin")
    adapter = parsed.values.get("adapter")
    if adapter is not None and not adapter.strip():
        raise RequestError("--adapter is empty: name the adapter's folder.", option="adapter")
    return LoadCommand(
        names[0],
        parsed.values.get("as"),
        trust_remote_code="trust_remote_code" in parsed.values,
        pin="pin" in parsed.values,
        adapter=adapter,
        save="save" in parsed.values,
    )
