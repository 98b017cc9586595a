"""Images as text: data URIs and base64, as people paste them."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from mlx_magic.errors import ImageDecodeError
from mlx_magic.formatting import amount, reason
from mlx_magic.images.formats import SNIFF_BYTES, image_format, unsupported_reason
from mlx_magic.images.limits import check_bytes

_MAX_ESCAPES = 3_000_000
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "(": ")", "<": ">"}  # noqa: RUF001
# What stands before a pasted value: an attribute of HTML, a function of CSS, Python's bytes.
_BEFORE = re.compile(r"""(?:(?:src|href|content|url)\s*[=(:]\s*|b(?=['"]))""", re.IGNORECASE)
_INSIDE = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[^,;\"']*)*,", re.IGNORECASE)
_END = re.compile(r"[\"'`)>\]}]")
_SPACES = re.compile(r"\s+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_ESCAPED = {"\\n": "", "\\r": "", "\\t": "", "\\/": "/", "%2B": "+", "%2F": "/", "%3D": "="}
_SHORTEST = 64
_HEAD = 1_024


def unwrapped(text: str) -> str:
    """Return pasted text without the quotes, brackets and attribute names around it."""
    text = text.strip()
    # Inside of HTML or Markdown it ends with the quote or the bracket.
    inside = _INSIDE.search(text[:_HEAD])
    if inside is not None and inside.start():
        text = _END.split(text[inside.start() :], maxsplit=1)[0]
    for _ in range(4):
        before = _BEFORE.match(text) if len(text) > _SHORTEST // 2 else None
        if before is not None:
            text = text[before.end() :].strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
        elif text[-1:] in (";", ")", ">") and text[:5].lower() == "data:":
            text = text[:-1].strip()
        elif before is None:
            break
    return text


def is_data_uri(text: str) -> bool:
    """Return whether `text` is a ``data:`` URI."""
    return text[:5].lower() == "data:"


def data_uri_label(text: str) -> str:
    """Return a label for a data URI, without its content."""
    return f"data URI ({amount(len(text))})"


def base64_label(text: str) -> str:
    """Return a label for base64, without its content."""
    return f"base64 text ({amount(len(text))})"


def looks_like_base64(text: str) -> bool:
    """Return whether text can only be base64: of an image, or too long and odd for a path."""
    head = _compact(text[: 2 * _HEAD])
    if len(head) < 16 or not _BASE64.fullmatch(head):
        return False
    if image_format(_head_of(head)) is not None:
        return True
    compact = _compact(text)
    mixed = any(c.isupper() for c in compact) and any(c.isdigit() for c in compact)
    return len(compact) >= 4 * _SHORTEST and mixed and bool(_BASE64.fullmatch(compact))


def read_base64(text: str, label: str) -> bytes:
    """Return the content of base64, with line breaks, without padding, or of the URL's alphabet.

    Raises
    ------
    ImageDecodeError
        If it is damaged, or holds no image.
    ImageTooLargeError
        If it has more than `MAX_FILE_BYTES`.
    """
    check_bytes(len(text) * 3 // 4, label)
    data = _decoded(_compact(text).encode("ascii", "replace"), label)
    head = data[:SNIFF_BYTES]
    if image_format(head) is None:
        raise ImageDecodeError(
            f"{label} looks like base64, but what it holds {unsupported_reason(head)}",
            source=label,
        )
    return data


def read_data_uri(text: str, label: str) -> bytes:
    """Return the content of a ``data:`` URI; its media type is ignored.

    Raises
    ------
    ImageDecodeError
        If it has no comma, too many escapes, or invalid base64.
    ImageTooLargeError
        If it has more than `MAX_FILE_BYTES`.
    """
    header, comma, body = text.partition(",")
    header = _SPACES.sub("", header)
    if not comma:
        raise ImageDecodeError(
            f"{label} has no comma: write data:image/png;base64,… with the content after it.",
            source=label,
        )
    check_bytes(len(body) * 3 // 4, label)
    # `unquote_to_bytes` makes an object of each.
    if body.count("%") > _MAX_ESCAPES:
        raise ImageDecodeError(
            f"{label} has more than {_MAX_ESCAPES} escapes with %: write it as base64.",
            source=label,
        )
    if not header.lower().endswith(";base64"):
        content = _unquoted(body, label)
        check_bytes(len(content), label)
        return content
    content = _unquoted(_compact(body), label)
    check_bytes(len(content) * 3 // 4, label)
    return _decoded(content, label)


def _unquoted(body: str, label: str) -> bytes:
    try:
        return unquote_to_bytes(body)
    except UnicodeEncodeError as error:
        raise ImageDecodeError(
            f"{label} has {body[error.start]!a}, half of a surrogate pair: copy it again.",
            source=label,
        ) from error


def _compact(text: str) -> str:
    """Return base64 without spaces, line breaks, and the escapes of JSON and URLs."""
    text = _SPACES.sub("", text)
    if "\\" in text or "%" in text:
        for escape, meant in _ESCAPED.items():
            text = text.replace(escape, meant)
    return text


def _decoded(content: bytes, label: str) -> bytes:
    content = content.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\v\f")
    if len(content) % 4 == 1:
        raise ImageDecodeError(
            f"{label} holds damaged base64: its end is missing, or a character in it.",
            source=label,
        )
    try:
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except binascii.Error as error:
        raise ImageDecodeError(
            f"{label} holds damaged base64: {reason(error)}.", source=label
        ) from error


def _head_of(compact: str) -> bytes:
    head = compact.rstrip("=")[:_HEAD].translate(str.maketrans("-_", "+/"))
    head = head[: len(head) // 4 * 4]
    try:
        return base64.b64decode(head, validate=True)
    except (binascii.Error, ValueError):
        return b""
