"""Reads untrusted JSON and text files: regular files only, with limits that are checked first.

A library may accept a file that this parser does not. So a file that cannot be parsed here is an
error, and is never treated as empty.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from mlx_magic.errors import CheckpointError

MOST_DEPTH = 64
"""Maximum nesting of objects and lists; at most nine in known configurations."""

_NO_LIMIT = int(1e30)  # the model_max_length that transformers writes for "no limit"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9]{400}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """Limits of a file.

    Attributes
    ----------
    nbytes : int
    values : int
        Number of objects, lists, strings, numbers and constants. Each takes about 100 bytes in
        memory.
    """

    nbytes: int
    values: int


CONFIG = JsonLimits(8 * 2**20, 250_000)
INDEX = JsonLimits(32 * 2**20, 1_000_000)
VOCABULARY = JsonLimits(64 * 2**20, 4_000_000)
HEADER = JsonLimits(16 * 2**20, 600_000)
TEMPLATE = JsonLimits(2 * 2**20, 0)
QUICK_BYTES = 3 * 2**20
"""Maximum bytes that are parsed for a model in a list; they take half a second."""


class UnreadableFileError(ValueError):
    """Raised when a file is refused. The message continues a sentence that names the file."""


class SlowToReadError(CheckpointError):
    """Raised when reading a checkpoint would take too long for a list."""


def require_quick(nbytes: int, *, model: str) -> None:
    """Refuse to parse too many bytes for a list.

    Raises
    ------
    SlowToReadError
    """
    if nbytes > QUICK_BYTES:
        raise SlowToReadError(f"{model}: it takes too long to read for a list.", model=model)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, also through links; pipes and devices are refused without waiting.

    Yields
    ------
    tuple
        The file, and its size in bytes.

    Raises
    ------
    UnreadableFileError
        It is not a regular file, or cannot be opened or read.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        _require_regular(path.stat())  # before opening: that has side effects on some devices
        descriptor = os.open(path, flags)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            _require_regular(found)
            yield file, found.st_size
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableFileError(f"cannot be read ({reason})") from error


def content(path: Path, limits: JsonLimits) -> bytes:
    """Read a whole regular file.

    Raises
    ------
    UnreadableFileError
        It is not a regular file, is too large or cannot be read.
    """
    with opened(path) as (file, size):
        if size > limits.nbytes:
            _too_large(size, limits)
        # The size may be wrong: files in /proc have none, and a file may grow.
        raw = file.read(limits.nbytes + 1)
    if len(raw) > limits.nbytes:
        _too_large(len(raw), limits)
    return raw


def text(path: Path, limits: JsonLimits) -> str:
    """Read a regular file of UTF-8 text.

    Raises
    ------
    UnreadableFileError
    """
    return _decoded(content(path, limits))


def read(path: Path, limits: JsonLimits = CONFIG) -> Any:
    """Parse a JSON file.

    Raises
    ------
    UnreadableFileError
        It is not a regular file, is too large or too deep, is not JSON, repeats a key, or has a
        number or text that libraries read in different ways.
    """
    return parse(content(path, limits), limits)


def scan(path: Path, limits: JsonLimits = VOCABULARY) -> tuple[bytes, bytes]:
    """Check the size, depth and number of values of a JSON file without parsing it.

    Returns
    -------
    tuple of bytes
        The content, unchanged and without string literals.

    Raises
    ------
    UnreadableFileError
    """
    raw = content(path, limits)
    without_strings = _require_shape(raw, limits)
    _decoded(raw)
    return raw, without_strings


def parse(raw: bytes, limits: JsonLimits = CONFIG) -> Any:
    """Parse JSON. Unlike `json.loads`, refuse repeated keys, NaN and very large numbers.

    Infinity is allowed: configurations of Mamba have it.

    Parameters
    ----------
    raw : bytes
        UTF-8 without a byte order mark, which the libraries do not accept either.
    limits : JsonLimits

    Raises
    ------
    UnreadableFileError
    """
    if len(raw) > limits.nbytes:
        _too_large(len(raw), limits)
    _require_shape(raw, limits)
    try:
        value = json.loads(
            _decoded(raw),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except UnreadableFileError:
        raise
    except UnicodeEncodeError as error:
        raise UnreadableFileError("is damaged (half a character)") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UnreadableFileError("is damaged (not valid JSON)") from error
    return value


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFileError("is not a regular file")


def _too_large(size: int, limits: JsonLimits) -> NoReturn:
    raise UnreadableFileError(
        f"is too large ({size / 1e6:.1f} MB, of at most {limits.nbytes / 1e6:.1f} MB)"
    )


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFileError("is damaged (not valid JSON: it is not UTF-8 text)") from error


def _require_shape(raw: bytes, limits: JsonLimits) -> bytes:
    """Check the number of values and the depth; return the content without string literals."""
    if raw.count(b'"') > 2 * limits.values + raw.count(b'\\"'):
        raise UnreadableFileError(f"has more than {limits.values} values")
    without_strings = _STRING.sub(b"", raw)
    if (
        without_strings.count(b",") + without_strings.count(b"[") + without_strings.count(b"{")
        > limits.values
    ):
        raise UnreadableFileError(f"has more than {limits.values} values")
    if _LONG_NUMBER.search(without_strings):
        raise UnreadableFileError("has a number of more than 400 digits")
    brackets = without_strings.translate(None, _NO_BRACKETS)
    for _ in range(MOST_DEPTH):
        if not brackets:
            return without_strings
        # Each pass removes the innermost brackets.
        inner = len(brackets)
        brackets = brackets.replace(b"[]", b"\0").replace(b"{}", b"\0").replace(b"\0", b"")
        if len(brackets) == inner:
            raise UnreadableFileError("is damaged (not valid JSON: it is cut short)")
    if brackets:
        raise UnreadableFileError(f"is nested more than {MOST_DEPTH} deep")
    return without_strings


def _integer(digits: str) -> int:
    if len(digits) <= 32:
        value = int(digits)
        if -(2**63) <= value < 2**63 or value == _NO_LIMIT:
            return value
    raise UnreadableFileError("has an integer of more than 64 bits")


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise UnreadableFileError("has a number that is too large")
    return value


def _constant(name: str) -> float:
    if name == "NaN":
        raise UnreadableFileError("has NaN, which is not a number")
    return float(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnreadableFileError("has a key twice in one object")
    return found
