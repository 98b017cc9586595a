"""Checks of tokenizer.json: ordinary files pass, unbounded growth is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError
from mlx_magic.models.checkpoints.tokenizer_file import require_bounded

MODEL = {"type": "BPE", "vocab": {"a{[": 0, '",}': 1}, "merges": [["a", "b"]]}


def judge(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    require_bounded(*strict_json.scan(path))


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


LLAMA = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"))
T5 = sequence(
    "normalizers",
    {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(
            (4).to_bytes(4, "little") + b"trie" + b"ab\0" * 100
        ).decode(),
    },
    {"type": "Strip", "strip_left": False, "strip_right": True},
    replace({"Regex": " {2,}"}, "▁"),
)
CLIP = sequence(
    "normalizers", {"type": "NFC"}, replace({"Regex": "\\s+"}, " "), {"type": "Lowercase"}
)
PIECES = sequence(
    "decoders",
    replace({"String": "▁"}, " "),
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)
QWEN = sequence(
    "pretokenizers",
    {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{N}"}, "behavior": "Isolated"},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
)
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BERT: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
}


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": LLAMA, "decoder": PIECES, "post_processor": BERT},
        {"normalizer": T5, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
        {"normalizer": CLIP},
        {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": QWEN,
            "post_processor": sequence("processors", LEVEL, BERT),
            "decoder": LEVEL,
            "padding": {"strategy": {"Fixed": 77}},
        },
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_ordinary_tokenizers_are_accepted(
    tmp_path: Path, parts: dict[str, Any], first: bool
) -> None:
    judge(tmp_path, {"model": MODEL, **parts} if first else {**parts, "model": MODEL})


TABLE = (4).to_bytes(4, "little") + b"trie" + b"x" * 1000 + b"\0"


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("normalizer", [replace({"String": "a"}, "aa")] * 7),
        ("normalizer", [replace({"String": ""}, "a")] * 7),
        ("normalizer", [replace({"Regex": "x*"}, "a")] * 7),
        ("normalizer", [replace({"Regex": "a|"}, "a")] * 7),
        ("normalizer", [replace({"Regex": "."}, "a" * 65)]),
        ("normalizer", [{"type": "ByteLevel"}] * 7),
        ("normalizer", [{"type": "NFKD"}] * 201),
        ("normalizer", [{"type": "Prepend", "prepend": "a" * 20_000}]),
        (
            "normalizer",
            [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(TABLE).decode()}],
        ),
        ("normalizer", [[replace({"String": "a"}, "aa")]]),
        ("pre_tokenizer", [LEVEL] * 7),
        ("post_processor", [{**BERT, "single": [BERT["single"][1]] * 2}] * 7),
        ("decoder", [replace({"String": "a"}, "aa")] * 7),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_tokenizers_with_unbounded_growth_are_refused(
    tmp_path: Path, part: str, steps: list[Any], first: bool
) -> None:
    inner = {
        "normalizer": "normalizers",
        "pre_tokenizer": "pretokenizers",
        "post_processor": "processors",
        "decoder": "decoders",
    }[part]
    held = {part: sequence(inner, sequence(inner, *steps))}
    content = {"model": MODEL, **held} if first else {**held, "model": MODEL}
    with pytest.raises(UnreadableFileError):
        judge(tmp_path, content)


def test_escaped_and_duplicate_keys_are_checked(tmp_path: Path) -> None:
    grows = json.dumps(sequence("normalizers", *[replace({"String": "a"}, "aa")] * 7))
    escaped = grows.replace("normalizers", "\\u006eormalizers").replace("Rep", "\\u0052ep")
    for text in (
        f'{{"\\u006eormalizer": {escaped}, "model": {{}}}}',
        f'{{"normalizer": {grows}, "normalizer": null, "model": {{}}}}',
        f'{{"model": {{}}, "normalizer": null, "normalizer": {grows}}}',
    ):
        with pytest.raises(UnreadableFileError, match="far too long"):
            judge(tmp_path, text)
