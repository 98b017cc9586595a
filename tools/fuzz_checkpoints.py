"""Fuzz the readers of checkpoints: ``python -m tools.fuzz_checkpoints headers|configs SECONDS``.

Hypothesis prints the smallest example of a failure. Add it to ``tests/hostile``.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_magic.errors import ModelError
from mlx_magic.models.checkpoints import checkpoint, safetensors

MOST_SECONDS = 5.0
"""Of one example: seconds of work, since the machine may be busy."""

WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "auto_map",
        "model_file",
        "__proto__",
        "\x1b[2J",
        "\u202e",
        "a\nb",
        "AutoTokenizer",
        "evil.Evil",
    ]
)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 10**9, 2**31, 2**62, 2**63, 10**30]),
    st.floats(),
    WORDS,
    st.recursive(
        WORDS | st.integers(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
        max_leaves=12,
    ),
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "Q9", "", "\x1b"]) | ODD,
        "shape": st.lists(st.integers(-2, 8) | ODD, max_size=5) | ODD,
        "data_offsets": st.tuples(st.integers(-4, 64), st.integers(-4, 64)) | ODD,
        "more": ODD,
    },
)


@st.composite
def weight_files(draw: st.DrawFn) -> bytes:
    """Draw a nearly valid safetensors file."""
    content = draw(st.dictionaries(WORDS, ENTRIES | ODD, max_size=5) | ODD)
    raw = json.dumps(content).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 3)) :]
    length = draw(st.just(len(raw)) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", length) + raw + draw(st.binary(max_size=64))


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Return all containers of a configuration, each with one of its keys."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(items):
        found.append((value, key))
        if isinstance(part, dict | list):
            places(part, found)
    return found


def asks_for_code(value: Any) -> bool:
    """Return whether a configuration, as transformers reads it, contains an auto_map."""
    if isinstance(value, list):
        return any(map(asks_for_code, value))
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(map(asks_for_code, value.values()))
    return False


def in_time(work: Callable[[], Any]) -> Any:
    """Call `work`, for at most `MOST_SECONDS`; return its value, or None if it is refused."""
    began = time.process_time()
    try:
        return work()
    except ModelError as error:
        if not str(error).isprintable():
            raise AssertionError(str(error)) from error
        return None
    finally:
        assert time.process_time() - began < MOST_SECONDS


def fuzz_headers(folder: Path, examples: int) -> None:
    """Fuzz weight files."""
    path = folder / "model.safetensors"

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(weight_files())
    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        held = in_time(lambda: safetensors.contents(path, model="m"))
        if held is not None:
            spans = safetensors.spans(path)
            assert held.tensors == len(spans)
            assert sum(s.nbytes for s in spans.values()) == held.sizes.total()
            assert all(8 <= s.start <= s.start + s.nbytes <= len(raw) for s in spans.values())

    one()


def fuzz_configs(folder: Path, examples: int) -> None:
    """Fuzz mutations of the configurations of all tiny models."""
    from tools.tiny_models.spec import all_models, build

    made: list[Path] = []
    for model in all_models():
        if not model.variant:
            build(model, folder / model.name)
            made.append(folder / model.name)
    names = ("config.json", "tokenizer_config.json", "preprocessor_config.json",
             "processor_config.json", "generation_config.json")  # fmt: skip
    files = [place / name for place in made for name in names if (place / name).is_file()]
    originals = {file: file.read_bytes() for file in files}

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(files), st.data())
    def one(file: Path, data: st.DataObject) -> None:
        content = json.loads(originals[file])
        for _ in range(data.draw(st.integers(1, 3))):
            holder, key = data.draw(st.sampled_from(places(content) or [(content, "a")]))
            if isinstance(holder, dict) and data.draw(st.booleans()):
                key = data.draw(WORDS | st.just("auto_map"))
            holder[key] = data.draw(ODD)
        raw = json.dumps(content, ensure_ascii=data.draw(st.booleans()))
        encoded = raw.encode("utf-8", "surrogatepass")
        if data.draw(st.integers(0, 9)) == 0:
            at = data.draw(st.integers(0, len(encoded)))
            encoded = encoded[:at] + data.draw(st.binary(max_size=4)) + encoded[at:]
        try:
            file.write_bytes(encoded)
            found = in_time(lambda: checkpoint.inspect(file.parent, "m"))
            listed = in_time(lambda: checkpoint.inspect(file.parent, "m", quick=True))
            assert (found is None) == (listed is None)
            if found is not None and not found.wants_code:
                assert not asks_for_code(json.loads(encoded.decode("utf-8")))
        finally:
            file.write_bytes(originals[file])

    one()


if __name__ == "__main__":
    ends = time.monotonic() + float(sys.argv[2])
    total = 0
    with tempfile.TemporaryDirectory() as place:
        while time.monotonic() < ends:
            (fuzz_headers if sys.argv[1] == "headers" else fuzz_configs)(Path(place), 2000)
            total += 2000
    print(f"{sys.argv[1]}: {total} examples, nothing found")
