"""Places as an answer writes them: numbers, before anything is known about the image."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

LONGEST = 400_000
"""Characters of an answer that are searched for places."""

_WORK = 4_000_000  # characters that may be read in vain while JSON is searched for
# Spaces are bounded: patterns with several unbounded ones take quadratic time.
_SPACE = r"\s{0,8}"
_NUMBER = rf"{_SPACE}([-+]?\d{{1,9}}(?:\.\d{{1,9}})?){_SPACE}"


@dataclass(frozen=True, slots=True)
class Written:
    """A place as it is written.

    Attributes
    ----------
    numbers : tuple of float
        x1, y1, x2, y2 of a box, or x, y of a point.
    label : str
    image : int or None
        The image that the answer names, counted from 1.
    """

    numbers: tuple[float, ...]
    label: str = ""
    image: int | None = None


# Each reader yields the places of a text in their order, and never raises. The prompt says what
# was asked, which changes the meaning of a few answers.


def qwen2(text: str, prompt: str) -> Iterator[Written]:
    """Read ``<|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>``."""
    label = ""
    for found in _QWEN2.finditer(text):
        if found["label"] is not None:
            label = found["label"]
            continue
        for corners in _CORNERS.finditer(found["box"]):
            yield Written(tuple(map(float, corners.groups())), label)


_QWEN2 = re.compile(
    r"<\|object_ref_start\|>(?P<label>[^<]*)<\|object_ref_end\|>"
    r"|<\|box_start\|>(?P<box>[^<]*)"
)
_CORNERS = re.compile(rf"\({_NUMBER},{_NUMBER}\){_SPACE},{_SPACE}\({_NUMBER},{_NUMBER}\)")


def qwen_json(text: str, prompt: str) -> Iterator[Written]:
    """Read JSON objects with ``bbox_2d`` (x1, y1, x2, y2) or ``point_2d`` (x, y)."""
    for item in _objects(text):
        for key, count in (("bbox_2d", 4), ("point_2d", 2)):
            for numbers in _rows(item.get(key), count):
                yield Written(numbers, _label(item), _image(item))


def plain_json(text: str, prompt: str) -> Iterator[Written]:
    """Read the JSON of `qwen_json`, and objects with a key for each coordinate."""
    for item in _objects(text):
        for key, count in (("bbox_2d", 4), ("point_2d", 2)):
            for numbers in _rows(item.get(key), count):
                yield Written(numbers, _label(item), _image(item))
        for keys in _EDGES:
            # With a width beside it, x may be the middle or the left edge.
            if len(keys) == 4 or not item.keys() & _SIZES:
                for numbers in _rows([item.get(key) for key in keys], len(keys)):
                    yield Written(numbers, _label(item), _image(item))


_EDGES = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x", "y"),
)
_SIZES = {"w", "h", "width", "height"}
_LABELS = ("label", "text_content", "name")


def paligemma(text: str, prompt: str) -> Iterator[Written]:
    """Read ``<loc0123><loc0456><loc0789><loc1011> cat ; ...``, which is y1, x1, y2, x2."""
    for found in _PALIGEMMA.finditer(text):
        y1, x1, y2, x2 = map(float, found.groups()[:4])
        yield Written((x1, y1, x2, y2), found["label"])


_PALIGEMMA = re.compile(
    r"(?<!<loc\d{4}>)"
    + r"<loc(\d{4})>" * 4
    + r"(?!<loc\d{4}>)\s*(?:<seg\d{3}>\s*)*(?P<label>[^<;]*)"
)


def florence(text: str, prompt: str) -> Iterator[Written]:
    """Read ``cat<loc_12><loc_34><loc_567><loc_890>``, which is x1, y1, x2, y2.

    Text with its region has the four corners of a quadrilateral; its bounding box is given.
    Outlines of segments are not boxes.
    """
    if "SEGMENTATION" in prompt.upper():
        return
    count = 8 if "OCR_WITH_REGION" in prompt.upper() or "WITH REGIONS" in prompt.upper() else 4
    end = 0
    for found in _FLORENCE.finditer(text):
        label = re.split("[<>]", text[end : found.start()])[-1]
        end = found.end()
        numbers = [float(n) for n in re.findall(r"\d+", found[0])]
        if len(numbers) % count:
            continue
        for at in range(0, len(numbers), count):
            corners = numbers[at : at + count]
            x, y = corners[0::2], corners[1::2]
            box = (min(x), min(y), max(x), max(y)) if count == 8 else tuple(corners)
            yield Written(box, label)


_FLORENCE = re.compile(r"(?:<loc_\d{1,4}>)+")


def molmo(text: str, prompt: str) -> Iterator[Written]:
    """Read ``<point x="12.3" y="45.6" alt="cat">cat</point>`` and ``<points x1= y1= x2= ...>``."""
    for found in _MOLMO.finditer(text):
        numbers: dict[str, dict[str, float]] = {}
        for axis, index, number in _AXIS.findall(found["attributes"]):
            numbers.setdefault(index, {})[axis] = float(number)
        for pair in numbers.values():
            if len(pair) == 2:
                yield Written((pair["x"], pair["y"]), _tag_label(found))


_MOLMO = re.compile(r"<points?\s(?P<attributes>[^<>]*)>(?:(?P<label>[^<]*)</points?>)?")
_AXIS = re.compile(rf"(?<![\w=\"])([xy])(\d{{0,6}}){_SPACE}={_SPACE}[\"']?{_NUMBER}")
_ALT = re.compile(rf"(?<![\w=\"])alt{_SPACE}={_SPACE}\"([^\"]*)\"")


def molmo2(text: str, prompt: str) -> Iterator[Written]:
    """Read ``<points coords="1 1 105 205 2 300 400">cat</points>``.

    The first number is the image, then follow the number of each point, its x and its y. Several
    images are separated by a semicolon or a tab.
    """
    for found in _MOLMO.finditer(text):
        coords = _COORDS.search(found["attributes"])
        for part in re.split(r"[;\t]", coords[1]) if coords else ():
            if re.search(r"\d{10}", part):
                continue
            numbers = [int(n) for n in re.findall(r"\d+", part)]
            if len(numbers) % 3 == 1:
                for _, x, y in zip(*(numbers[at::3] for at in (1, 2, 3)), strict=True):
                    yield Written((float(x), float(y)), _tag_label(found), numbers[0])


_COORDS = re.compile(rf"coords{_SPACE}={_SPACE}\"([\d;\t ,]*)\"")


def _tag_label(found: re.Match[str]) -> str:
    alt = _ALT.search(found["attributes"])
    return alt[1] if alt else found["label"] or ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield each JSON object in a text; of an array that was cut off, the whole ones."""
    for value in _values(text):
        left = [value]
        while left:
            item = left.pop()
            if isinstance(item, dict):
                yield item
                left += reversed(item.values())
            elif isinstance(item, list):
                left += reversed(item)


def _values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at, work = 0, 0
    while work < _WORK and (found := _OPENING.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, found.start())
            yield value
        except json.JSONDecodeError as error:
            at = found.start() + 1
            # Text that opens much and closes nothing must not take quadratic time. The error counts
            # the lines before it, about 16 characters in the time that the parser takes for one.
            work += error.pos - found.start() + error.pos // 16
        except (ValueError, RecursionError):  # a number of 5,000 digits; nested too deeply
            return


_OPENING = re.compile(r"\{(?=\s{0,80}\")|\[(?=\s{0,80}[\[{\d-])")


def _rows(value: Any, count: int) -> Iterator[tuple[float, ...]]:
    """Yield a list of `count` numbers, or each one in a list of such lists."""
    if not isinstance(value, list):
        return
    rows = value if value and all(isinstance(row, list) for row in value) else [value]
    for row in rows:
        if len(row) == count and all(map(_is_number, row)):
            yield tuple(float(number) for number in row)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


def _label(item: dict[str, Any]) -> str:
    found = (item[key] for key in _LABELS if isinstance(item.get(key), str))
    return next(found, "")


def _image(item: dict[str, Any]) -> int | None:
    value = item.get("image")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def first(written: Iterator[Written], most: int) -> list[Written]:
    """Return the first places."""
    return list(islice(written, most))
