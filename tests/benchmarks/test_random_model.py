from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks import random_model
from benchmarks.wire import write_words


@given(st.integers(min_value=3, max_value=2000))
def test_every_token_has_a_distinct_word(size: int) -> None:
    vocabulary = {"a": 0, "\u0120aaaa": 2}
    random_model.extend(vocabulary, size)
    assert sorted(vocabulary.values()) == list(range(size))
    assert (vocabulary["a"], vocabulary["\u0120aaaa"]) == (0, 2)


def test_answer_has_the_requested_number_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    write_words(path, 200, paragraphs=True)
    words = json.loads(path.read_text(encoding="utf-8"))
    assert len(words) == 200
    assert "".join(words).count("\n\n") == 2
    write_words(path, 200, paragraphs=False)
    assert "\n" not in "".join(json.loads(path.read_text(encoding="utf-8")))
