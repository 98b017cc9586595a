from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.strict_json import (
    JsonLimits,
    UnreadableFileError,
    parse,
    read,
    scan,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=40
)


@given(VALUES, st.booleans())
def test_valid_json_is_parsed_as_by_the_standard_library(value: Any, ascii_only: bool) -> None:
    try:
        raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    assert parse(raw) == json.loads(raw)


@settings(max_examples=300)
@given(st.binary() | st.text('[]{}",:\\ \n0123456789eE.-truefalsnyNaI\x00\ufeff').map(str.encode))
def test_invalid_json_raises_only_our_error(raw: bytes) -> None:
    try:
        value = parse(raw)
    except UnreadableFileError:
        return
    assert value == json.loads(raw.decode())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 983 + b"1" + b"}" * 983, "nested more than 64 deep"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b'{"a": 1, "\\u0061": 2}', "a key twice"),
        (b"NaN", "NaN"),
        (b"1e999", "too large"),
        (b"9223372036854775808", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b"1" * 4000, "400 digits"),
        (b'"\\ud800"', "half a character"),
        (b'"\xff"', "not UTF-8"),
        ("\ufeff{}".encode(), "not valid JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'"' + b'\\"' * 100_000, "not valid JSON"),
        (b'"\\', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"{]", "not valid JSON"),
        (b"[" + b"{}," * 300_000 + b"{}]", "more than 250000 values"),
        (b"[" + b'"",' * 300_000 + b'""]', "more than 250000 values"),
    ],
)
def test_hostile_json_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(UnreadableFileError, match=words):
        parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 64 + b"]" * 64,
        b'"' + b"[" * 1000 + b'"',
        b'"\\ud83d\\ude00"',
        b"1000000000000000019884624838656",
        b'{"time_step_limit": [0.0, Infinity]}',
        b'{"\\"[": "\\\\"}',
    ],
)
def test_json_of_real_checkpoints_is_read(raw: bytes) -> None:
    assert parse(raw) == json.loads(raw)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "folder.json").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(UnreadableFileError, match=r"not a regular file|cannot be read"):
            read(path)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("[1]")
    (tmp_path / "a.json").symlink_to(tmp_path / "blob")
    assert read(tmp_path / "a.json") == [1]


def test_file_size_is_checked_before_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(10**12)
    for look in (read, scan):
        with pytest.raises(UnreadableFileError, match="too large"):
            look(path)


def test_scan_counts_without_building_objects(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"[[[": 1, '"]': 2}))
    scan(path)
    with pytest.raises(UnreadableFileError, match="more than 1 values"):
        scan(path, JsonLimits(1000, 1))
    path.write_text('{"a": "')
    with pytest.raises(UnreadableFileError, match="cut short"):
        scan(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama", "llama"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x9b2Jy", "xy"),
        ("a\u202eb\u2066c\u200fd", "abcd"),
        ("a\r\nb\u2028c\u2029d\x85e", "a b c d e"),
        ("日本語 é", "日本語 é"),
        ("\ud800x", "x"),
    ],
)
def test_text_is_made_printable(text: str, said: str) -> None:
    assert shown(text) == said


@given(st.text(), st.integers(5, 80))
def test_shown_text_is_one_short_printable_line(text: str, most: int) -> None:
    said = shown(text * 3, most)
    assert said.isprintable()
    assert len(said) <= most
    assert shown(said, most) == said


def test_limits_are_consistent() -> None:
    assert strict_json.CONFIG.nbytes < strict_json.INDEX.nbytes < strict_json.VOCABULARY.nbytes
