from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.commands import (
    CancelCommand,
    Command,
    HelpCommand,
    ListCommand,
    LoadCommand,
    ModelsCommand,
    PinCommand,
    StatusCommand,
    UnloadCommand,
    UseCommand,
    parse_line,
)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("", StatusCommand()),
        ("  ", StatusCommand()),
        ("help", HelpCommand()),
        ("--help", HelpCommand()),
        ("load -h", HelpCommand()),
        ("load x --as y --help", HelpCommand()),
        ("list", ListCommand()),
        ("models org/name", ModelsCommand("org/name")),
        ("status", StatusCommand()),
        ("cancel", CancelCommand()),
        ("use demo", UseCommand("demo")),
        ("unload demo", UnloadCommand("demo")),
        ("unload --all", UnloadCommand(None)),
        ("unload demo --force", UnloadCommand("demo", force=True)),
        ("unload --force --all", UnloadCommand(None, force=True)),
        ("pin demo", PinCommand("demo", pinned=True)),
        ("unpin 'my model'", PinCommand("my model", pinned=False)),
        ("load x --pin", LoadCommand("x", pin=True)),
        ("load org/name", LoadCommand("org/name")),
        ("load '/my models/x' --as x", LoadCommand("/my models/x", "x")),
        ("load --trust-remote-code x --as=y", LoadCommand("x", "y", trust_remote_code=True)),
        ("load x --adapter '~/my lora'", LoadCommand("x", adapter="~/my lora")),
        ("load x --as y --save", LoadCommand("x", "y", save=True)),
        (
            "load x --pin --adapter lora --save --as y --trust-remote-code",
            LoadCommand("x", "y", trust_remote_code=True, pin=True, adapter="lora", save=True),
        ),
    ],
)
def test_each_subcommand_is_parsed(line: str, command: Command) -> None:
    assert parse_line(line) == command


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("panel qwen", "%vision panel takes no arguments: remove 'qwen'."),
        ("unpin", "%vision unpin needs a MODEL."),
        ("pin x --force", "Unknown flag --force."),
        ("load x --adapter", "--adapter needs a value: --adapter PATH."),
        ("load x --adapter ''", "--adapter is empty: name the adapter's folder."),
        ("lod x", "Unknown subcommand 'lod'; did you mean load?"),
        ("stats", "Unknown subcommand 'stats'; did you mean status?"),
        (
            "photo.jpg",
            "Unknown subcommand 'photo.jpg': use one of load, unload, pin, unpin, list, models, "
            "status, use, cancel, panel, journal, help; questions start with %%vision.",
        ),
        ("load", "%vision load needs a MODEL."),
        ("load ''", "%vision load needs a MODEL."),
        ("use", "%vision use needs a MODEL."),
        ("models", "%vision models needs a MODEL."),
        ("unload", "%vision unload needs a MODEL (or --all)."),
        ("use a b", "%vision use takes one MODEL, not 2: quote names that contain spaces."),
        ("unload x --all", "%vision unload --all takes no arguments: remove 'x'."),
        ("list x", "%vision list takes no arguments: remove 'x'."),
        ("status --all", "Unknown flag --all."),
        ("load x --trust", "Unknown flag --trust; did you mean --trust-remote-code?"),
        ("load x --as", "--as needs a value: --as ALIAS."),
        ("use 'x", "A quote is not closed: use 'x"),
    ],
)
def test_usage_errors_are_one_line(line: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_line(line)
    assert str(caught.value) == message


@given(st.text() | st.text(alphabet="load unse'-= ").map(lambda text: f"load {text}"))
def test_any_line_parses_or_raises_only_usage_errors(line: str) -> None:
    message = ""
    try:
        parse_line(line)
    except RequestError as error:
        message = str(error)
    assert "\n" not in message
