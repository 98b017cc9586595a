"""Export of a conversation as Markdown and as JSON.

The JSON is one object. Unknown values are null, sizes are in pixels, times in seconds:

    format      "mlx-magic conversation"
    version     2
    turns       list of
      number    int, from 1
      follows   bool: whether the earlier turns were sent with it
      prompt    str
      system    str
      options   {max_tokens: int, temperature, top_p: float, top_k: int, min_p,
                repetition_penalty: float, seed: int, stop: list of str, timeout: float,
                max_pixels: int, normalize: bool, kv_bits: int,
                think: bool}
      images    list of {name: str, word: str, width, height: int, sha256: str, note: str}
      answers   list of {model: str, state: "running" | "done" | "cancelled" | "failed",
                text, reasoning: str, finish_reason: "stop" | "length" | "cancelled" | "timeout",
                usage: {prompt_tokens, image_tokens, cached_tokens, completion_tokens: int},
                timings: {queued, load, vision, prefill, decode, time_to_first_token: float,
                prompt_tps, generation_tps: float}, peak_memory: int (bytes),
                seen: list of str, error: str}

It does not contain the images: "word" is the source of one, "sha256" (over mode, size and pixels)
identifies it. Version 1 called "images" "pictures". Texts are unchanged: a program that shows them
must sanitize them.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlx_magic.engine.request import Choices
from mlx_magic.notebook.display import markdown_text, render, sanitize
from mlx_magic.notebook.display.data_views import probabilities
from mlx_magic.notebook.magic_line.expressions import one_line
from mlx_magic.options import OPTIONS, RequestOption

if TYPE_CHECKING:
    from mlx_magic.notebook.panel.state.conversation import Answer, PanelImage, Turn

FORMAT = "mlx-magic conversation"
VERSION = 2

THUMBNAIL_SIDE = 256
"""Pixels."""

_LONGEST_SLUG = 40
_LONGEST_NAME = 80
# Signs of Markdown and its dialects: anywhere, or at the start of a line.
_SIGN = re.compile(r"[\\`*_\[\]<>&|~$]|//(?=\S)")
# JupyterLab and pandoc interpret the first two even after a backslash. A URL with another scheme,
# or with none, must not become a link.
_REFERENCES = {"$": "&#36;", "\\": "&#92;", "//": "/&#47;"}
_FIRST_SIGN = re.compile(r"[-+=:#]|[0-9]+(?=[.)])")
_SURROGATE = re.compile("[\ud800-\udfff]")


def to_markdown(turns: Sequence[Turn]) -> str:
    """Return a conversation as Markdown: questions, thumbnails, answers.

    Prompts are shown verbatim. Answers keep their Markdown, sanitized, inside block quotes: an
    unclosed code block, or a heading, ends with its quote. Programs that show it fetch and run
    nothing. The same turns give the same text.

    Parameters
    ----------
    turns : sequence of Turn
        Oldest first.
    """
    blocks = ["# Conversation"]
    for number, turn in enumerate(turns, 1):
        blocks += _turn_blocks(turn, number)
    return markdown_text.guarded("\n\n".join(blocks) + "\n")


def to_json(turns: Sequence[Turn]) -> str:
    """Return a conversation as JSON; the module's docstring describes it.

    Parameters
    ----------
    turns : sequence of Turn
        Oldest first.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "turns": [_turn_data(turn, number) for number, turn in enumerate(turns, 1)],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # A lone surrogate cannot be encoded as UTF-8, but as an escape of JSON.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n"


def file_name(turns: Sequence[Turn], suffix: str) -> str:
    """Return a file name, such as ``vision-what-is-in-the-picture.md``.

    Parameters
    ----------
    turns : sequence of Turn
        The name is made from the first prompt.
    suffix : str
        With or without a dot.
    """
    prompt = unicodedata.normalize("NFKC", turns[0].prompt[:1_000]) if turns else ""
    words = re.findall(r"[^\W_]+", prompt.lower())
    slug = ""
    for word in ["vision", *words]:
        longer = f"{slug}-{word}" if slug else word
        if len(longer.encode(errors="replace")) > _LONGEST_SLUG + len("vision-"):
            break
        slug = longer
    ending = re.sub(r"[^a-z0-9]", "", suffix.lower())
    return f"{slug}.{ending}" if ending else slug


def _turn_blocks(turn: Turn, number: int) -> Iterator[str]:
    yield f"## Question {number}"
    if number > 1 and not turn.follows:
        yield "*Standalone question (earlier turns not sent).*"
    yield render.quote_block(_as_written(turn.prompt))
    if turn.images:
        yield "\n".join(map(_image_markdown, turn.images))
    if turn.settings.system is not None:
        yield "System prompt:"
        yield render.quote_block(_as_written(turn.settings.system))
    if options := _options_line(turn):
        yield f"Options: {options}"
    for answer in turn.answers:
        yield f"### {_inline(answer.model)}"
        yield from _answer_blocks(answer)


def _answer_blocks(answer: Answer) -> Iterator[str]:
    result = answer.result
    if result is not None:
        if result.reasoning:
            yield render.thoughts_markdown(result.reasoning).strip("\n")
        text = sanitize.to_markdown(result.text, guarded=False).strip("\n")
        yield render.quote_block(text) if text.strip() else "*(no text)*"
        if probabilities.has_probabilities(result):
            yield probabilities.markdown_list(result)
    if answer.error:
        yield f"**Failed:** {_inline(answer.error, 500)}"
    elif result is None:
        yield "*Not finished yet.*"
    else:
        ending = render.finish_words(result) or "finished"
        parts = [answer.model, ending, render.usage_line(result)]
        yield f"*{_inline(' · '.join(parts), 500)}*"


def _options_line(turn: Turn) -> str:
    given = _options(turn)
    standard = {option.name: _plain(option, option.default) for option in OPTIONS}
    parts = [f"{name} {value}" for name, value in given.items() if value != standard[name]]
    return _inline(", ".join(parts), 500)


def _image_markdown(panel_image: PanelImage) -> str:
    thumbnail = panel_image.image.thumbnail(THUMBNAIL_SIDE)
    data = b64encode(thumbnail.data).decode("ascii")
    caption = "{} {}x{}".format(
        one_line(sanitize.to_plain(panel_image.name)), *panel_image.image.size
    )
    return f"![{_inline(caption, 2 * _LONGEST_NAME)}](data:{thumbnail.mime};base64,{data})"


def _inline(text: str, limit: int = _LONGEST_NAME) -> str:
    """Return plain text, escaped, for one line of Markdown."""
    return _escaped(one_line(sanitize.to_plain(text), limit))


def _as_written(text: str) -> str:
    """Return plain text as Markdown that shows it verbatim, with its newlines."""
    lines = sanitize.to_plain(text).strip("\n").split("\n")
    shown = []
    for at, line in enumerate(lines):
        words = line.strip(" \t")
        if not words:
            shown.append("")
            continue
        indent = line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4)
        # A trailing backslash is a line break; before an empty line there is none.
        more = at + 1 < len(lines) and lines[at + 1].strip(" \t")
        shown.append("&nbsp;" * len(indent) + _escaped(words) + ("\\" if more else ""))
    return "\n".join(shown)


def _escaped(line: str) -> str:
    escaped = _SIGN.sub(lambda sign: _REFERENCES.get(sign[0], f"\\{sign[0]}"), line)
    if (first := _FIRST_SIGN.match(escaped)) is None:
        return escaped
    # A digit cannot be escaped, but the sign that makes it a list item can.
    at = first.end() if first[0][0].isdigit() else 0
    return f"{escaped[:at]}\\{escaped[at:]}"


def _turn_data(turn: Turn, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "follows": turn.follows,
        "prompt": turn.prompt,
        "system": turn.settings.system,
        "options": _options(turn),
        "images": [_image_data(panel_image) for panel_image in turn.images],
        "answers": [_answer_data(answer) for answer in turn.answers],
    }


def _options(turn: Turn) -> dict[str, Any]:
    return {
        option.name: _plain(option, value)
        for option, value in turn.settings
        if option.affects_answer and option.name not in ("model", "system")
    }


def _plain(option: RequestOption, value: Any) -> Any:
    """Return a value that JSON can encode; it cannot encode NumPy's numbers."""
    if value is None:
        return None
    if option.kind in ("integer", "number"):
        return int(value) if option.kind == "integer" else float(value)
    if isinstance(value, Choices):
        return list(value.labels)
    return list(value) if option.kind == "texts" else value


def _image_data(panel_image: PanelImage) -> dict[str, Any]:
    width, height = panel_image.image.size
    return {
        "name": panel_image.name,
        "word": panel_image.word or None,
        "width": width,
        "height": height,
        "sha256": panel_image.image.digest,
        "note": panel_image.image.note,
    }


def _answer_data(answer: Answer) -> dict[str, Any]:
    result = answer.result
    data: dict[str, Any] = {
        "model": answer.model,
        "state": answer.state,
        "text": None,
        "reasoning": None,
        "finish_reason": None,
        "usage": None,
        "timings": None,
        "peak_memory": None,
        "seen": [],
        "error": answer.error or None,
    }
    if result is not None and result.probabilities:
        data["probabilities"] = [
            [str(getattr(value, "value", value)), probability]
            for value, probability in result.probabilities.items()
        ]
    if result is not None:
        data |= {
            "text": result.text,
            "reasoning": result.reasoning or None,
            "finish_reason": result.finish_reason,
            "usage": asdict(result.usage),
            "timings": dict(_finite(asdict(result.timings).items())),
            "peak_memory": result.peak_memory,
            "seen": list(result.seen),
        }
    return data


def _finite(items: Iterable[tuple[str, float | None]]) -> Iterator[tuple[str, float | None]]:
    """Replace numbers that JSON lacks, such as an infinite rate, by None."""
    for name, value in items:
        yield name, value if value is not None and math.isfinite(value) else None
