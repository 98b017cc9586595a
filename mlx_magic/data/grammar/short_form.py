"""The short form of a schema: ``"shape: str, count: int, color: red|green|blue"``."""

from __future__ import annotations

import re
from typing import Any

from mlx_magic.data.grammar.json_schemas import SchemaError

TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
    "none": {"type": "null"},
    "null": {"type": "null"},
}
"""Words of the short form that are types."""

_NAME = re.compile(r"[^\W\d]\w*(?:[ -]\w+)*")
_MOST_LEVELS = 20


def parse(text: str) -> dict[str, Any]:
    """Return the JSON schema of a short form.

    Fields are separated by commas or line breaks. A type is str, int, float, bool, date,
    ``list[type]``, words in alternatives (``red|green|dark blue``), or fields in braces. A
    question mark after it allows null.

    Raises
    ------
    SchemaError
        The text cannot be read.
    """
    return _fields(text, 0)


def _fields(text: str, level: int) -> dict[str, Any]:
    if level > _MOST_LEVELS:
        raise SchemaError(f"it is nested more than {_MOST_LEVELS} levels deep", "")
    properties: dict[str, Any] = {}
    for part in _split(text, ",\n;"):
        if not part.strip():
            continue
        name, colon, kind = part.partition(":")
        name = name.strip()
        if not colon or not _NAME.fullmatch(name):
            raise SchemaError(
                f"{part.strip()!r} is not 'name: type', as in 'shape: str, count: int'", ""
            )
        if name in properties:
            raise SchemaError(f"it has two fields {name}", "")
        properties[name] = _type(kind.strip(), name, level)
    if not properties:
        raise SchemaError("it has no fields: write 'name: type', as in 'count: int'", "")
    return {"type": "object", "properties": properties, "required": list(properties)}


def _type(text: str, name: str, level: int) -> dict[str, Any]:
    if text.endswith("?"):
        inner = _type(text[:-1].strip(), name, level)
        return {"anyOf": [inner, {"type": "null"}]}
    if text.startswith("list[") and text.endswith("]") and _is_one(text[4:]):
        return {"type": "array", "items": _type(text[5:-1].strip(), name, level + 1)}
    if text.startswith("{") and text.endswith("}") and _is_one(text):
        return _fields(text[1:-1], level + 1)
    parts = [part.strip() for part in _split(text, "|")]
    if len(parts) > 1:
        return _alternatives(parts, name, level)
    if text in TYPES:
        return dict(TYPES[text])
    if text == "list":
        return {"type": "array", "items": {"type": "string"}}
    known = ", ".join([*(each for each in TYPES if each != "null"), "list[str]"])
    what = repr(text) if text else "nothing"
    raise SchemaError(f"{name}: {what} is not a type: use {known} or words such as red|green", "")


def _alternatives(parts: list[str], name: str, level: int) -> dict[str, Any]:
    """Return the schema of words and types of which one is chosen."""
    kinds = [p for p in parts if p in TYPES or p[:5] == "list[" or p[:1] == "{"]
    words = [part.strip("\"'") for part in parts if part not in kinds]
    if "" in words:
        raise SchemaError(f"{name}: an alternative is empty", "")
    if len(set(words)) < len(words):
        raise SchemaError(f"{name}: two alternatives are the same", "")
    choice = [{"type": "string", "enum": words}] if words else []
    found = [*choice, *(_type(part, name, level + 1) for part in kinds)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _split(text: str, separators: str) -> list[str]:
    """Split a text at separators outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not parts[-1].rstrip()[-1:].isalnum():
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char in separators and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    if depth or quote:
        raise SchemaError("a bracket or a quote is not closed", "")
    return parts


def _is_one(text: str) -> bool:
    """Whether the first bracket of a text closes at its end."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char in "[{") - (char in "]}")
        if depth == 0:
            return at == len(text) - 1
    return False
