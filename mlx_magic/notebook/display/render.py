"""A finished answer as a static MIME bundle, identical on each run of a greedy decode."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING

from mlx_magic.notebook.display import formulas, markdown_text
from mlx_magic.notebook.display.data_views.probabilities import (
    bars_html,
    has_probabilities,
    markdown_list,
    plain_lines,
)
from mlx_magic.notebook.display.places import overlay
from mlx_magic.notebook.display.sanitize import preformatted, to_html, to_markdown, to_plain
from mlx_magic.notebook.display.terminal import printable
from mlx_magic.notebook.magic_line.expressions import one_line

if TYPE_CHECKING:
    from mlx_magic.engine.places.values import Box, Point
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.opening import ImageInput

MOST_ROWS = 200
"""Rows of a table."""

THUMBNAIL_SIDE = 256
"""Pixels."""

PLACES_SIDE = 384
"""Pixels of an image on which places are drawn."""

_NONE = "none of them"
"""Answer to a question with several labels of which none holds."""

_FINISH = {"length": "cut off at max_tokens", "cancelled": "cancelled", "timeout": "timed out"}
_QUIET = "color:var(--jp-content-font-color2,inherit);font-size:85%"
_BORDER = "1px solid var(--jp-border-color2,#8886)"


@lru_cache(maxsize=1)
def bundle(result: VisionResult) -> dict[str, str]:
    """Return a result's MIME bundle, without timings, rates and memory.

    Formats "text" and "json" have no ``text/markdown``; "raw" has only ``text/plain``. Terminal
    sequences and control characters are removed in each; ``result.text`` keeps them. Thoughts
    are folded, and not in ``text/plain``.
    """
    if result.format == "raw":
        return {"text/plain": printable(to_plain(result.text))}
    plain, answer = _answer(result)
    if has_probabilities(result):
        plain = f"{plain or _NONE}\n{plain_lines(result)}"
    finish = finish_words(result)
    thoughts = thoughts_html(result.reasoning)
    thumbnails = thumbnails_html(result.images, result.seen, places_of(result))
    shown = {
        "text/plain": printable(
            "\n".join(part for part in (plain, f"[{finish}]" if finish else "") if part)
        ),
        # Long words must not widen the page, and nothing may be drawn outside of the element:
        # formulas and stacked accents can be of any size.
        "text/html": (
            f'<div class="{formulas.UNSET}" style="overflow-wrap:anywhere;overflow:auto">'
            f"{thumbnails}{thoughts}{answer}{_footer(result)}</div>"
        ),
    }
    if result.format == "markdown":
        ending = f"\n\n*{finish}*" if finish else ""
        text = to_markdown(result.text)
        if has_probabilities(result):
            text = markdown_text.guarded(f"{_markdown_choice(result)}\n\n{markdown_list(result)}\n")
        shown["text/markdown"] = thoughts_markdown(result.reasoning) + (text + ending)
    return shown


def ending(result: VisionResult) -> str:
    """Return the lines that a terminal shows after the streamed text."""
    finish = finish_words(result)
    parts = [f"[{finish}]"] if finish else []
    if has_probabilities(result):
        parts.append(plain_lines(result))
    if result.data_error is not None:
        parts.append(f"Not valid JSON: {one_line(to_plain(result.data_error))}")
    return "\n".join(parts)


def answer_html(text: str) -> str:
    """Return the text of an answer as HTML, without thumbnails and footer."""
    plain = to_plain(text)
    return to_html(plain) if plain.strip() else "<p><em>(no text)</em></p>"


def data_html(text: str) -> str | None:
    """Return JSON as an HTML table; None if it is no object, and no list of objects.

    Fields of an object are rows, objects of a list are rows with their fields as columns. What is
    nested stays JSON.

    Parameters
    ----------
    text : str
        An answer that follows a schema.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and value:
        rows = [[_cell("th", name), _cell("td", each)] for name, each in value.items()]
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        shown = value[:MOST_ROWS]
        names = list(dict.fromkeys(name for each in shown for name in each))
        rows = [[_cell("th", name) for name in names]]
        rows += [[_cell("td", each.get(name, "")) for name in names] for each in shown]
    else:
        return None
    more = len(value) - MOST_ROWS if isinstance(value, list) else 0
    rest = f"<p><em>{more:,} more</em></p>" if more > 0 else ""
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<table class="{formulas.UNSET}"><tbody>{body}</tbody></table>{rest}'


def _cell(tag: str, value: object) -> str:
    is_text = isinstance(value, str)
    text = value if is_text else json.dumps(value, ensure_ascii=False)
    return f"<{tag}>{escape(to_plain(str(text)))}</{tag}>"


def result_html(result: VisionResult, text: str | None = None) -> str:
    """Return the answer of a result as HTML, without thumbnails and footer.

    Parameters
    ----------
    result : VisionResult
    text : str, optional
        The part of its text to show.
    """
    if has_probabilities(result):
        return preformatted(to_plain(result.text or _NONE)) + bars_html(result)
    return answer_html(result.text if text is None else text)


def _markdown_choice(result: VisionResult) -> str:
    chosen = to_markdown(result.text or _NONE, guarded=False).strip("\n")
    return chosen if result.text else f"*{chosen}*"


def thoughts_html(reasoning: str) -> str:
    """Return the thoughts before an answer as a folded element; ``""`` if there are none."""
    plain = to_plain(reasoning)
    if not plain.strip():
        return ""
    return (
        f'<details style="{_QUIET};margin-bottom:6px"><summary style="cursor:pointer">Thinking'
        f"</summary>{to_html(plain)}</details>"
    )


def thoughts_markdown(reasoning: str) -> str:
    """Return the thoughts before an answer as a folded block; ``""`` if there are none."""
    if not to_plain(reasoning).strip():
        return ""
    quoted = quote_block(to_markdown(reasoning, guarded=False).strip("\n"))
    thoughts = markdown_text.guarded(f"{quoted}\n")
    return f"<details>\n<summary>Thinking</summary>\n\n{thoughts}\n</details>\n\n"


def quote_block(markdown: str) -> str:
    """Return Markdown as a block quote, in which an open code block ends with the quote."""
    return "\n".join(f"> {line}" if line else ">" for line in markdown.split("\n"))


def finish_words(result: VisionResult) -> str:
    """Return why an answer ended early; ``""`` if it did not."""
    words = _FINISH.get(result.finish_reason, "")
    thinking = words and result.reasoning and not result.text.strip()
    return f"{words} while thinking" if thinking else words


def _answer(result: VisionResult) -> tuple[str, str]:
    """Return the answer as plain text and as HTML."""
    plain = to_plain(result.text)
    if has_probabilities(result):
        return plain, result_html(result)
    if result.format == "json":
        if result.data_error is None:
            plain = to_plain(_pretty(result))
            return plain, preformatted(plain)
        problem = f"Not valid JSON: {one_line(to_plain(result.data_error))}"
        warning = f'<p role="alert"><strong>{escape(problem)}</strong></p>'
        return f"{problem}\n{plain}", warning + preformatted(plain)
    if result.format == "markdown" or not plain.strip():
        return plain, answer_html(plain)
    return plain, preformatted(plain)


def _pretty(result: VisionResult) -> str:
    try:
        return json.dumps(result.data, indent=2, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # a typed object, or one that was set by hand
        pass
    try:
        return json.dumps(json.loads(result.text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return result.text


def _footer(result: VisionResult) -> str:
    parts = [result.model]
    if finish := finish_words(result):
        parts.append(finish)
    text = escape(to_plain(" · ".join(parts)))
    return f'<div style="{_QUIET};margin-top:6px">{text}</div>'


def places_of(result: VisionResult) -> list[Box | Point]:
    """Return the boxes and points of an answer, to be drawn over its images."""
    return [*result.boxes, *result.points] if result.images else []


def thumbnails_html(
    images: Sequence[ImageInput],
    seen: Sequence[str] = (),
    places: Sequence[Box | Point] = (),
) -> str:
    """Return a row of thumbnails with captions; ``""`` if there are no images.

    Parameters
    ----------
    images : sequence of ImageInput
    seen : sequence of str
        The size at which the model sees each image, where known.
    places : sequence of Box or Point
        Drawn over the images.
    """
    sizes = seen if len(seen) == len(images) else [""] * len(images)
    figures = "".join(
        _figure(image, size, [place for place in places if place.image == at])
        for at, (image, size) in enumerate(zip(images, sizes, strict=True))
    )
    if not figures:
        return ""
    return (
        f'<div class="{formulas.UNSET}" role="list" aria-label="Images of this question" '
        f'style="display:flex;flex-wrap:wrap;gap:8px;margin-bottom:8px">{figures}</div>'
    )


def places_html(result: VisionResult) -> str:
    """Return the images of a question that have places, with these; ``""`` if none has."""
    places = places_of(result)
    used = sorted({place.image for place in places})
    at = {image: number for number, image in enumerate(used)}
    return thumbnails_html(
        [result.images[image] for image in used],
        places=[replace(place, image=at[place.image]) for place in places],
    )


def _figure(image: ImageInput, seen: str, places: Sequence[Box | Point] = ()) -> str:
    side = PLACES_SIDE if places else THUMBNAIL_SIDE
    thumbnail = image.thumbnail(side)
    # A small image is shown larger if labels have to be read on it.
    factor = max(1.0, side / max(thumbnail.width, thumbnail.height)) if places else 1.0
    shown = round(thumbnail.width * factor), round(thumbnail.height * factor)
    source = escape(one_line(to_plain(image.source), 80))
    width, height = image.size
    note = one_line(to_plain(image.note or ""))
    caption = f"{source} · {width} × {height}"  # noqa: RUF001 - the sign for sizes
    if image.original_size != image.size and "{}x{}".format(*image.original_size) not in note:
        caption += " (from {} × {})".format(*image.original_size)  # noqa: RUF001
    if seen and seen != "{} x {}".format(*image.size):
        caption += f"<br>seen at {escape(to_plain(seen))}".replace(" x ", " × ")  # noqa: RUF001
    if note:
        caption += f" · {escape(note)}"
    data = b64encode(thumbnail.data).decode("ascii")
    border = "display:block" if places else f"border:{_BORDER};border-radius:2px"
    picture = (
        f'<img src="data:{escape(thumbnail.mime)};base64,{data}" alt="{source}" '
        f'width="{shown[0]}" height="{shown[1]}" style="max-width:100%;height:auto;{border}">'
    )
    if places:
        drawn = overlay.svg(places, image.original_size, shown)
        picture = (
            f'<div style="position:relative;width:{shown[0]}px;max-width:100%">{picture}{drawn}'
            f"</div>"
        )
        caption = f"{overlay.legend(places)}<br>{caption}"
    return (
        f'<figure role="listitem" style="margin:0;max-width:{max(side, shown[0])}px">{picture}'
        f'<figcaption style="{_QUIET};overflow-wrap:anywhere">{caption}</figcaption></figure>'
    )


def usage_line(result: VisionResult) -> str:
    """Return tokens, speed and time to first token on one line; for live views only."""
    usage, timings = result.usage, result.timings
    details = [f"{usage.image_tokens} image"] if usage.image_tokens else []
    if usage.cached_tokens:
        details.append(f"{usage.cached_tokens} cached")
    read = f"{usage.prompt_tokens} prompt tokens"
    parts = [f"{read} ({', '.join(details)})" if details else read]
    parts.append(f"{usage.completion_tokens} written")
    if timings.generation_tps:
        rate = timings.generation_tps
        parts.append(f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.3g} tokens/s")
    if timings.time_to_first_token is not None:
        parts.append(f"first token after {timings.time_to_first_token:.2f} s")
    return ", ".join(parts)
