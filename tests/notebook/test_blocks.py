"""Cutting a growing text into blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.notebook.display.live_text import LONGEST_TAIL, Blocks


def fed(*pieces: str) -> Blocks:
    blocks = Blocks()
    for piece in pieces:
        blocks.feed(piece)
    return blocks


def test_a_blank_line_ends_a_block() -> None:
    blocks = fed("One\n", "\nTwo", " more")
    assert blocks.finished == [("One\n\n", True)]
    assert blocks.tail == "Two more"


def test_fence_is_not_split_at_a_blank_line() -> None:
    blocks = fed("```py\na = 1\n\nb = 2\n```\n\nAfter")
    assert blocks.finished == [("```py\na = 1\n\nb = 2\n```\n\n", True)]
    assert blocks.tail == "After"


def test_long_paragraph_is_split_at_a_space_and_marked() -> None:
    blocks = fed("word " * 200)
    assert all(not whole for _, whole in blocks.finished)
    assert all(text.endswith(" ") for text, _ in blocks.finished)
    assert len(blocks.tail) <= LONGEST_TAIL


def test_rest_of_a_split_paragraph_is_not_marked_whole() -> None:
    blocks = fed("word " * 120, "end.\n\nNext one.\n\n")
    kinds = [whole for _, whole in blocks.finished]
    assert kinds == [False, False, True]


@given(st.lists(st.text(alphabet="ab \n`#", max_size=80), max_size=40))
def test_only_blank_blocks_are_dropped_and_the_tail_is_bounded(pieces: list[str]) -> None:
    blocks = fed(*pieces)
    kept = "".join(text for text, _ in blocks.finished) + blocks.tail
    assert kept.split() == "".join(pieces).split()
    assert len(blocks.tail) <= LONGEST_TAIL
