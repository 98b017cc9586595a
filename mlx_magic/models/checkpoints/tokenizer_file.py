"""Bounds how much the steps of a tokenizer.json can lengthen a text.

The normalizer, pre-tokenizer, post-processor and decoder are lists of steps. Forty steps that each
double a text would fill all memory at the first question, and the Rust library would then abort the
process.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MOST_GROWTH = 64
_MOST_STEPS = 200
_MOST_ADDED = 10_000  # characters or tokens that one step adds
_LONGEST_FORM = 256  # bytes of a character's normal form; at most 33 in Unicode
_MOST_PADDING = 2**20
_INNERMOST = re.compile(rb"[\[{][^\[\]{}]*+[\]}]")
_SPACE = re.compile(r"[ \t\n\r]*")
# A regular expression with one of these may match the empty text between two characters.
_MATCHES_EMPTY = re.compile(r"\(\?|\\[bBAzZGK]|\{0|\{,|[*?|^$]")


def require_bounded(raw: bytes, without_strings: bytes) -> None:
    """Refuse a tokenizer whose steps could make a text many times as long.

    Parameters
    ----------
    raw : bytes
        A tokenizer.json.
    without_strings : bytes
        The same without its strings; brackets match.

    Raises
    ------
    UnreadableFileError
    """
    growth = 1.0
    steps = 0
    for key, value in _members(raw.decode(), without_strings):
        if key == "padding" and isinstance(value, dict):
            _require_padding(value)
        if key not in _PARTS:
            continue
        growth = 1.0
        for step in _steps(value):
            steps += 1
            growth *= _growth(step)
            if growth > _MOST_GROWTH or steps > _MOST_STEPS:
                raise UnreadableFileError(f"has a {key} that could make a text far too long")


def _members(text: str, without_strings: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the members of the JSON object, except the tokenizer's model if it comes last."""
    while True:
        without_strings, replaced = _INNERMOST.subn(b"", without_strings)
        if without_strings.count(b"{") + without_strings.count(b"[") <= 1 or not replaced:
            break
    count = without_strings.count(b",") + 1 if b":" in without_strings else 0
    decoder = json.JSONDecoder()
    try:
        at = _expected(text, 0, "{")
        for member in range(count):
            key, at = decoder.raw_decode(text, _after_space(text, at))
            at = _after_space(text, _expected(text, at, ":"))
            if key == "model" and member == count - 1:
                return
            value, at = decoder.raw_decode(text, at)
            yield str(key), value
            if member < count - 1:
                at = _expected(text, at, ",")
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError("is damaged (not valid JSON)") from error


def _expected(text: str, at: int, character: str) -> int:
    at = _after_space(text, at)
    if not text.startswith(character, at):
        raise ValueError(character)
    return at + 1


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part, including those of nested sequences."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if step is None:
            continue
        if not isinstance(step, dict):
            # The Rust library would accept a list as the fields of a step.
            raise UnreadableFileError("has a part that is not an object")
        yield step
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            if key in step:
                inner = step[key]
                waiting += inner if isinstance(inner, list) else [inner]


def _growth(step: dict[str, Any]) -> float:
    """Return the factor by which a step can lengthen a text."""
    kind = step.get("type")
    # Some types are recognized by their fields alone.
    if kind == "Replace" or ("pattern" in step and "content" in step):
        return _replace_growth(step.get("pattern"), step.get("content"))
    if kind == "ByteLevel" or "use_regex" in step or "trim_offsets" in step:
        return 2
    if kind == "Precompiled" or "precompiled_charsmap" in step:
        return _precompiled_growth(step.get("precompiled_charsmap"))
    if kind == "TemplateProcessing" or "single" in step:
        return _template_growth(step)
    strings = [value for value in step.values() if isinstance(value, str)]
    if max(map(len, strings), default=0) > _MOST_ADDED:
        return float("inf")
    return 1


def _replace_growth(pattern: Any, content: Any) -> float:
    length = len(content) if isinstance(content, str) else 0
    if isinstance(pattern, dict):
        literal, expression = pattern.get("String"), pattern.get("Regex")
    else:
        literal, expression = pattern, None
    if isinstance(expression, str):
        between = _MATCHES_EMPTY.search(expression) is not None
        return 1 + length if between or not expression else max(1, length)
    if isinstance(literal, str) and literal:
        return max(1.0, length / len(literal))
    return 1 + length


def _precompiled_growth(blob: Any) -> float:
    """Return the factor of a SentencePiece table of normal forms; infinity for a suspect one."""
    try:
        raw = base64.b64decode(blob, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return 1  # the libraries cannot read it either
    forms = raw[4 + int.from_bytes(raw[:4], "little") :]
    longest = max(map(len, forms.split(b"\0")), default=0)
    # Normalizing twice changes nothing more, so that the factor 2 is rarely multiplied.
    return 2 if longest <= _LONGEST_FORM else float("inf")


def _template_growth(step: dict[str, Any]) -> float:
    """Return how often a post-processor repeats a text; infinity if it adds too many tokens."""
    tokens = step.get("special_tokens")
    most = 1
    for name in ("single", "pair"):
        pieces = step.get(name)
        repeated, added = 0, 0
        for piece in pieces if isinstance(pieces, list) else ():
            if not isinstance(piece, dict):
                continue
            repeated += "Sequence" in piece
            special = piece.get("SpecialToken")
            named = special.get("id") if isinstance(special, dict) else None
            entry = tokens.get(named) if isinstance(tokens, dict) and named else None
            ids = entry.get("ids") if isinstance(entry, dict) else None
            added += len(ids) if isinstance(ids, list) else 1
        if added > _MOST_ADDED:
            return float("inf")
        most = max(most, repeated if name == "single" else repeated - 1)
    return most


def _require_padding(padding: dict[str, Any]) -> None:
    strategy = padding.get("strategy")
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    for number in (fixed, padding.get("pad_to_multiple_of")):
        if isinstance(number, int | float) and number > _MOST_PADDING:
            raise UnreadableFileError(f"pads each text to {number} tokens")
