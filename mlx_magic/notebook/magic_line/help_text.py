"""The text of ``%%vision?`` and ``%vision?``, made from the table of flags."""

from __future__ import annotations

from typing import Literal

from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, LINE_OPTIONS, SETTINGS, Option
from mlx_magic.notebook.magic_line.tokens import split_line

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
