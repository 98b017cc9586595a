"""Matchers and masks: which tokens may come next, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_magic.backends.grammars.compiled import CompiledGrammar
from mlx_magic.backends.grammars.mask import masked
from mlx_magic.backends.grammars.matcher import GrammarMatcher
from mlx_magic.errors import GenerationError

BYTES = LLTokenizer("byte")
STOP = BYTES.eos_token
THINK = [7, 8]
"""Tokens of an opening mark: bytes that no JSON has."""


class Thoughts:
    """Thoughts that end with a dot."""

    def __init__(self, *, opened: bool) -> None:
        self.openings = [] if opened else [THINK]
        self.ended = False
        self.seen: list[int] = []

    def feed(self, token: int) -> None:
        self.seen.append(token)
        self.ended = token == ord(".")


def matcher(grammar: str, thoughts: Thoughts | None = None) -> GrammarMatcher:
    compiled = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
    return CompiledGrammar(BYTES, compiled, "model").start(thoughts)


def allowed(one: GrammarMatcher) -> set[int]:
    words = np.zeros(one.words, np.uint32)
    one.fill(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.nonzero(bits[: BYTES.vocab_size])[0].tolist())


def test_tokens_follow_the_grammar_and_then_the_answer_ends() -> None:
    one = matcher('start: "a" ("b" | "c")')
    assert allowed(one) == {ord("a")}
    one.advance(ord("a"))
    assert allowed(one) == {ord("b"), ord("c")}
    one.advance(ord("c"))
    assert allowed(one) == {STOP}
    one.advance(STOP)
    assert one.free


def test_forced_tokens_are_the_same_one_by_one_and_at_once() -> None:
    one, other = (matcher('start: "abcd" ("e" | "f") "gh"') for _ in range(2))
    steps = []
    for _ in range(4):
        (token,) = allowed(one)
        steps.append(token)
        one.advance(token)
    other.advance(ord("a"))
    assert [ord("a"), *other.take_forced()] == steps == list(b"abcd")
    assert other.take_forced() == []
    assert allowed(one) == allowed(other) == {ord("e"), ord("f")}
    other.advance(ord("f"))
    assert other.take_forced() == list(b"gh")
    assert allowed(other) == {STOP}


def test_the_grammar_begins_after_the_thoughts() -> None:
    thoughts = Thoughts(opened=True)
    one = matcher('start: "a"', thoughts)
    assert one.free
    for token in b"xyz":
        one.advance(token)
        assert one.free
    assert one.take_forced() == []
    one.advance(ord("."))
    assert allowed(one) == {ord("a")}
    assert thoughts.seen == list(b"xyz.")


def test_an_answer_may_open_thoughts_or_begin_at_once() -> None:
    one = matcher('start: "a" | "b"', Thoughts(opened=False))
    assert allowed(one) == {ord("a"), ord("b"), THINK[0]}
    one.advance(THINK[0])
    assert allowed(one) == {THINK[1]}
    one.advance(THINK[1])
    assert one.free
    one.advance(ord("."))
    assert allowed(one) == {ord("a"), ord("b")}
    other = matcher('start: "ab"', Thoughts(opened=False))
    assert allowed(other) == {ord("a"), THINK[0]}
    other.advance(ord("a"))
    assert allowed(other) == {ord("b")}


def test_a_mark_that_the_answer_may_begin_with_opens_no_thoughts() -> None:
    thoughts = Thoughts(opened=False)
    thoughts.openings = [[ord("a"), 7]]
    assert allowed(matcher('start: "a"', thoughts)) == {ord("a")}


def test_a_token_outside_of_the_grammar_is_an_error() -> None:
    one = matcher('start: "a"')
    with pytest.raises(GenerationError, match="cannot follow its schema"):
        one.advance(ord("x"))


@pytest.mark.parametrize("size", [BYTES.vocab_size, 400, 64])
def test_masks_leave_other_rows_as_they_are(size: int) -> None:
    import mlx.core as mx

    logits: Any = mx.arange(3 * size, dtype=mx.float32).reshape(3, size)
    found = np.array(masked(logits * 1, [None, matcher('start: "$" | "!"'), None]))
    expected = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    keep = [ord("!"), ord("$")]
    assert (found[[0, 2]] == expected[[0, 2]]).all()
    assert (found[1, keep] == expected[1, keep]).all()
    assert np.isneginf(np.delete(found[1], keep)).all()
    assert masked(logits, [None, None, None]) is logits
    every = np.array(masked(logits * 1, [matcher('start: "$"')] * 3))
    assert np.isfinite(every).sum() == 3
