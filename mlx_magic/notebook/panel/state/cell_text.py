"""A turn of the panel as an equivalent ``%%vision`` cell."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_magic.engine.request import Choices
from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import parse_expression
from mlx_magic.notebook.magic_line.image_variables import IMAGE_SUFFIXES
from mlx_magic.notebook.magic_line.template import escape, fill
from mlx_magic.notebook.magic_line.tokens import quote, split_line
from mlx_magic.notebook.magic_line.variable_names import free_name
from mlx_magic.notebook.panel.state.conversation import PanelImage, Turn, history
from mlx_magic.options import RequestOption, Settings

if TYPE_CHECKING:
    from mlx_magic.images.opening import ImageInput

WITHOUT_HISTORY = "The cell asks a standalone question (earlier turns not sent)."

_MANY_BRACES = 500
# Newlines other than \n, control characters, lone surrogates: these are lost or changed between
# an editor and the kernel.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_NOT_IN_A_LINE = re.compile(f"[\n{_CONTROLS}]")
# What else IPython removes from a cell: lines of only spaces, prompts at the start of a line.
_NOT_IN_A_BODY = re.compile(
    r"(?m:^[^\S\n]+$|^[^\S\n]*>>>)"
    r"|\A[^\S\n]*(?:\.\.\.|(?:\[(?:nav|ins)\][ ])?In(?=[ ]\[\d+\]:))"
    f"|[{_CONTROLS}]+"
)


@dataclass(frozen=True, slots=True)
class ImageWords:
    """The words of a ``%%vision`` line for the images of a turn.

    Attributes
    ----------
    words : tuple of str
        One word for each image, in order.
    variables : dict
        Variables that the words need: names and values.
    """

    words: tuple[str, ...] = ()
    variables: dict[str, ImageInput] = field(default_factory=dict)


def words_for(images: Sequence[PanelImage], namespace: Mapping[str, object]) -> ImageWords:
    """Return the word of a ``%%vision`` line for each image.

    An image that was dropped, pasted or photographed has no name in the notebook: it gets a
    variable, which is used again once it is defined.

    Parameters
    ----------
    images : sequence of PanelImage
    namespace : mapping
        The notebook's variables; not changed.
    """
    variables: dict[str, ImageInput] = {}
    new: dict[str, object] = {}
    taken = ChainMap(new, dict(namespace))
    words = []
    for panel_image in images:
        if panel_image.word.strip():
            words.append(_one_word(panel_image.word))
            continue
        name = free_name(panel_image.name, taken, panel_image.image)
        new[name] = variables[name] = panel_image.image
        # In brackets, as a file of this name would take precedence over the variable.
        words.append(f"({name})" if Path(name).is_file() else name)
    return ImageWords(tuple(words), variables)


def cell_text(
    turn: Turn,
    model: str,
    words: Sequence[str],
    *,
    output: str | None = None,
    defaults: Settings | None = None,
) -> str:
    """Return the cell that asks a model the question of a turn.

    Prompt, images, model, system prompt, sampling and image size are the same when the cell is
    parsed. Text that an editor or IPython would change in a prompt (spaces on an otherwise empty
    line, ``>>>``, a carriage return) is written as ``{'…'}``, and braces that would be evaluated
    are doubled. A system prompt of several lines does not fit on a magic's line: then the cell is
    the call that IPython makes of a ``%%vision`` cell, which runs and cancels in the same way.

    A cell cannot express: earlier turns (see `what_is_left_out`); the checkpoint's default of an
    option for which `defaults` has a value; several stop texts, or none where `defaults` has one,
    or no timeout; line feeds around the prompt, which ``%%vision`` strips.

    Parameters
    ----------
    turn : Turn
    model : str
        The model of the cell.
    words : sequence of str
        Word of each image; see `words_for`.
    output : str, optional
        Variable that receives the result.
    defaults : Settings, optional
        Settings of the flags; flags with these values are left out.

    Raises
    ------
    RequestError
        If the numbers of words and images differ.
    """
    if len(words) != len(turn.images):
        raise RequestError(
            f"{len(turn.images)} images have {len(words)} words: give one for each.",
            option="images",
        )
    options = _options(turn, model, output, defaults or Settings())
    line = " ".join([*map(_one_word, words), *options])
    if _NOT_IN_A_LINE.search(line):
        # As IPython rewrites a cell, so that this one is awaited, too.
        prompt = turn.prompt
        body = prompt if _fills_to(prompt, prompt, {}) else escape(prompt)
        return f"get_ipython().run_cell_magic('vision', {line!r}, {body!r})"
    return f"%%vision {line}\n{_body(turn.prompt)}"


def what_is_left_out(turn: Turn, before: Sequence[Turn], model: str) -> str:
    """Return a note on what the cell of a turn lacks, or ``""``.

    Parameters
    ----------
    turn : Turn
    before : sequence of Turn
        The turns before it, oldest first.
    model : str
    """
    return WITHOUT_HISTORY if turn.follows and history(before, model) else ""


def _options(turn: Turn, model: str, output: str | None, defaults: Settings) -> Iterator[str]:
    yield f"-m {quote(model)}"
    if output is not None and output != defaults.output:
        yield f"-o {quote(output)}"
    for option, value in turn.settings:
        if option.target == "cell" or option.name == "model":
            continue
        if value != getattr(defaults, option.name) and (text := _written(option, value)):
            alone = option.kind in ("optional switch", "flag")
            yield text if alone else f"{option.flags[0]} {text}"


def _written(option: RequestOption, value: Any) -> str:
    """Return a value as the line says it; ``""`` if no flag can say it."""
    if value is None:
        value = option.off
        if value is None:
            return ""
    match option.kind:
        case "optional switch":
            return option.flags[0 if value else 1]
        case "flag":
            return option.flag if value else ""
        case "expression":
            return quote(repr(list(value.labels))) if isinstance(value, Choices) else ""
        case "integer":
            return str(int(value))
        case "number":
            return _number(value)
        case "texts":
            return quote(value[0].replace("\n", "\\n")) if len(value) == 1 else ""
    return quote(value)


def _number(value: float) -> str:
    exact = float(value)
    return str(int(exact)) if exact.is_integer() and exact < 1e6 else repr(exact)


def _one_word(word: str) -> str:
    """Return a word, in brackets or quotes if needed, so that it is one token of any line."""
    word = word.strip()
    if _is_one_word(word):
        return word
    # `a if b else c` needs brackets; `my photo.jpg` needs quotes.
    bracketed = f"({word})"
    expression = parse_expression(bracketed) is not None and not _names_an_image(word)
    return bracketed if expression and _is_one_word(bracketed) else quote(word)


def _names_an_image(word: str) -> bool:
    return word.lower().endswith(tuple(IMAGE_SUFFIXES))


def _is_one_word(word: str) -> bool:
    """Whether it is one token, with balanced brackets and quotes."""
    try:
        # If any bracket of a line is unbalanced, no bracket keeps spaces together.
        before, *tokens = split_line(f"(a b) {word} x")
    except RequestError:
        return False
    if before.raw != "(a b)" or len(tokens) != 2 or tokens[0].raw != word:
        return False
    return tokens[0].quoted or not word.startswith("-")


def _body(prompt: str) -> str:
    """Return the prompt, escaped so that an editor, IPython and `fill` restore it."""
    literals: dict[str, str] = {}

    def literal(found: re.Match[str]) -> str:
        literals[repr(found.group())] = found.group()
        return f"{{{found.group()!r}}}"

    written = _NOT_IN_A_BODY.sub(literal, prompt)
    if _fills_to(written, prompt, literals):
        return written
    return _NOT_IN_A_BODY.sub(literal, escape(prompt))


def _fills_to(text: str, prompt: str, literals: Mapping[str, str]) -> bool:
    """Whether `fill` turns `text` into `prompt` in any notebook, without doubled braces."""
    if text.count("{") > _MANY_BRACES:  # each one is a search for its closing brace
        return False
    try:
        return fill(text, literals.__getitem__) == prompt
    except RequestError:
        return False
