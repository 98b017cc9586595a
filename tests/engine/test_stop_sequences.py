"""Stop sequences end the text where they begin, for any chunk boundaries."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.stop_sequences import StopSequences

# Few letters, so that stop sequences often overlap, share prefixes or are nested.
texts = st.text("ab\n", max_size=30)
stop_texts = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def filtered(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Feed the chunks, as a generation does."""
    stops, out = StopSequences(stop), ""
    for piece in pieces:
        text, stopped = stops.feed(piece)
        out += text
        if stopped:
            assert stops.flush() == ""
            return out, True
    return out + stops.flush(), False


def expected(stop: list[str], text: str) -> tuple[str, bool]:
    """Check every possible end: slow and simple."""
    for end in range(1, len(text) + 1):
        starts = [end - len(each) for each in stop if text[:end].endswith(each)]
        if starts:
            return text[: min(starts)], True
    return text, False


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(texts)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    edges = [0, *places, len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(edges)]


@given(stop_texts, cut())
def test_chunk_boundaries_do_not_change_the_text(
    stop: list[str], cut: tuple[str, list[str]]
) -> None:
    text, pieces = cut
    assert filtered(stop, pieces) == expected(stop, text)


@given(stop_texts, cut())
def test_only_a_possible_start_of_a_stop_sequence_is_held_back(
    stop: list[str], cut: tuple[str, list[str]]
) -> None:
    stops, fed, out = StopSequences(stop), "", ""
    for piece in cut[1]:
        text, stopped = stops.feed(piece)
        fed, out = fed + piece, out + text
        if stopped:
            return
        held = fed[len(out) :]
        assert fed.startswith(out)
        assert not held or any(each.startswith(held) for each in stop)
        assert len(held) < max((len(each) for each in stop), default=1)


@pytest.mark.parametrize(
    ("stop", "pieces", "text", "stopped"),
    [
        ([], ["a", "b"], "ab", False),
        (["."], ["One. Two."], "One", True),
        (["\n\n"], ["One\n", "\nTwo"], "One", True),
        (["\n\n"], ["One\n", "Two\n"], "One\nTwo\n", False),
        (["END"], ["the E", "N", "d"], "the ENd", False),
        (["abc", "b"], ["a", "b", "c"], "a", True),
        (["bc", "abc"], ["abc"], "", True),
    ],
)
def test_stop_sequences_cut_the_text(
    stop: list[str], pieces: list[str], text: str, stopped: bool
) -> None:
    assert filtered(stop, pieces) == (text, stopped)


def test_no_text_follows_a_stop_sequence() -> None:
    stops = StopSequences(("x",))
    assert stops.feed("axb") == ("a", True)
    assert stops.feed("c") == ("", True)
    assert stops.flush() == ""
