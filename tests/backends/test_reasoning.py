"""Reasoning marks are found in templates, and separate thoughts from text however they arrive."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.chat_templates.reasoning import (
    Marks,
    Pair,
    ReasoningStream,
    marks_of,
)
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk

QWEN = "{% if '</think>' in content %}{% endif %}{{ '<|im_start|>assistant\\n' }}"
THINK = Pair("<think>", "</think>")


def answer(pieces: list[str], marks: Marks, prompt_end: str = "") -> tuple[str, str]:
    """Return the thoughts and the text of an answer that arrives in pieces."""
    stream = ReasoningStream(marks, prompt_end)
    reasoning = text = ""
    for split in [*map(stream.feed, pieces), stream.finish()]:
        if split.all_reasoning:
            reasoning, text = reasoning + text, ""
        reasoning, text = reasoning + split.reasoning, text + split.text
    return reasoning, text


TEMPLATES = {
    "qwen": (QWEN, THINK),
    "opened in the prompt": ("{{ '<Assistant><think>\\n' }}", THINK),
    "kimi": ("{{ '◁think▷' }}", Pair("◁think▷", "◁/think▷")),
    "magistral": ("[THINK]thoughts[/THINK]", Pair("[THINK]", "[/THINK]")),
    "cohere": (
        "<|START_THINKING|>{{ m.plan }}<|END_THINKING|>",
        Pair("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "seed": ("{% set begin = '<seed:think>' %}", Pair("<seed:think>", "</seed:think>")),
    "gemma 4": (
        "{{ '<|channel>thought\\n<channel|>' }}",
        Pair("<|channel>thought", "<channel|>"),
    ),
    "gpt-oss": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        Pair(
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ),
    "a family of tomorrow": (
        "<my_thoughts>{{ m.reasoning_content }}</my_thoughts>",
        Pair("<my_thoughts>", "</my_thoughts>"),
    ),
    "another of tomorrow": (
        "<|begin_of_thought|>{{ m.reasoning_content }}<|end_of_thought|>",
        Pair("<|begin_of_thought|>", "<|end_of_thought|>"),
    ),
}


@pytest.mark.parametrize(("template", "pair"), TEMPLATES.values(), ids=TEMPLATES)
def test_marks_are_read_from_the_template(template: str, pair: Pair) -> None:
    marks = marks_of(template)
    assert marks.pairs == (pair,)
    begun = f"{pair.opening}\nlet me see{pair.closing}\n\nfour"
    assert answer([begun], marks) == ("\nlet me see", "\n\nfour")


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ messages[0]['content'] }}",
        "{% if message['reasoning_content'] %}{% endif %}{{ x[think] }}",
        "Think step by step. <thinkers> are not marked here.",
    ],
)
def test_a_template_without_marks_has_none(template: str) -> None:
    assert not marks_of(template)


def test_an_architecture_can_have_marks_that_its_template_does_not_show() -> None:
    marks = marks_of("", "kimi_vl")
    assert answer(["◁think▷so◁/think▷four"], marks) == ("so", "four")
    # Only the beginning of an answer counts.
    text = "The mark ◁/think▷ ends thoughts."
    assert answer([text], marks) == ("", text)


MARKS = marks_of(QWEN)


@pytest.mark.parametrize(
    ("raw", "prompt_end", "expected"),
    [
        ("<think>so</think>four", "assistant\n", ("so", "four")),
        ("so</think>four", "assistant\n<think>\n", ("so", "four")),
        ("<think>so</think>four", "assistant\n<think>\n", ("so", "four")),
        ("four", "<think>\n\n</think>\n\n", ("", "four")),
        ("</think> ends thoughts", "<think>\n\n</think>\n\n", ("", "</think> ends thoughts")),
        ("four", "assistant\n", ("", "four")),
        ("  four ", "assistant\n", ("", "  four ")),
        ("<b>four</b>", "assistant\n", ("", "<b>four</b>")),
        # Cut within the thoughts.
        ("<think>so it", "assistant\n", ("so it", "")),
        ("so it", "<think>", ("so it", "")),
        ("so it</thi", "<think>", ("so it</thi", "")),
        # The model left out the opening mark.
        ("so</think>four", "assistant\n", ("so", "four")),
        # Later marks are text.
        ("<think>so</think>a <think>b</think>", "", ("so", "a <think>b</think>")),
        ("<think></think>four", "", ("", "four")),
        ("", "", ("", "")),
        ("", "<think>", ("", "")),
    ],
)
def test_thoughts_end_at_the_closing_mark(
    raw: str, prompt_end: str, expected: tuple[str, str]
) -> None:
    assert answer([raw], MARKS, prompt_end) == expected
    assert answer(list(raw), MARKS, prompt_end) == expected


HUNYUAN = marks_of("<think></think><answer>{{ content }}</answer>")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<think>so</think>\n<answer>four</answer>", ("so", "four")),
        ("<think>so</think>\n<answer>four</answer>\n", ("so", "four")),
        ("<answer>four</answer>", ("", "four")),
        ("<think>so</think>four", ("so", "four")),
        ("<think>so</think><answer>a</answer> b", ("so", "a</answer> b")),
        ("<think>so</think><answer>fo", ("so", "fo")),
    ],
)
def test_marks_around_the_answer_are_not_part_of_it(raw: str, expected: tuple[str, str]) -> None:
    assert answer([raw], HUNYUAN) == expected
    assert answer(list(raw), HUNYUAN) == expected


ALL = [
    MARKS,
    HUNYUAN,
    *(marks_of(template) for template, _ in TEMPLATES.values()),
    marks_of("[BEGIN FINAL RESPONSE] [END FINAL RESPONSE]"),
    marks_of("", "kimi_vl"),
]


@given(data=st.data())
def test_any_split_gives_the_same_thoughts_and_text(data: st.DataObject) -> None:
    marks = data.draw(st.sampled_from(ALL))
    words = [mark for pair in (*marks.opening, *marks.wrappers) for mark in pair if mark]
    parts = st.sampled_from([*words, *(w[:-1] for w in words), " ", "\n", "a", "<", ">", "/", "fo"])
    raw = "".join(data.draw(st.lists(parts, max_size=8)))
    prompt_end = data.draw(st.sampled_from(["", *words]))
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
    pieces = [raw[a:b] for a, b in pairwise(sorted({0, *cuts, len(raw)}))]
    assert answer(pieces, marks, prompt_end) == answer([raw], marks, prompt_end)


@given(raw=st.text(alphabet="ab \n<>/think", max_size=40), data=st.data())
def test_no_character_is_lost_or_changed(raw: str, data: st.DataObject) -> None:
    prompt_end = data.draw(st.sampled_from(["", "<think>", "</think>"]))
    reasoning, text = answer(list(raw), MARKS, prompt_end)
    rest = "".join(raw.split())
    for mark in ("<think>", "</think>"):
        if rest.replace(mark, "", 1) == "".join((reasoning + text).split()):
            rest = rest.replace(mark, "", 1)
    both = "".join((reasoning + text).split())
    assert both in (rest, rest.replace("<think>", "", 1).replace("</think>", "", 1))


def test_marks_that_the_detokenizer_skips_are_found_by_their_tokens() -> None:
    marks = marks_of("<|channel>thought\n<channel|>")
    skipped = {1: "<eos>", 7: "<|channel>", 8: "<channel|>", 9: "<|turn>"}
    stream = ReasoningStream(marks, "<|turn>model\n", skipped)
    tokens = [(7, ""), (20, "thou"), (21, "ght\n"), (22, "so <channel|>"), (9, ""), (8, "")]
    splits = [stream.feed(text, token) for token, text in [*tokens, (23, "four"), (1, "")]]
    splits.append(stream.finish())
    # Words that only look like the mark are text.
    assert "".join(split.reasoning for split in splits) == "\nso <channel|>"
    assert "".join(split.text for split in splits) == "four"


def test_skipped_tokens_change_nothing_in_an_answer_without_thoughts() -> None:
    marks = marks_of("<think></think>")
    stream = ReasoningStream(marks, "", {7: "<think>", 8: "</think>", 9: "<x>"})
    splits = [stream.feed("a </think> b", 20), stream.feed("c", 9), stream.finish()]
    assert "".join(split.text for split in splits) == "a </think> bc"
    assert not any(split.reasoning for split in splits)


def reported(pieces: list[str], prompt_end: str = "") -> list[GenerationChunk]:
    chunks: list[GenerationChunk] = []
    active = ActiveRequest(GenerationRequest("What?"), CancelToken(), chunks.append)
    active.reasoning = ReasoningStream(MARKS, prompt_end)
    for count, piece in enumerate(pieces, 1):
        active.report_text(piece, count, 0)
    active.report_rest()
    return chunks


def test_chunks_have_thoughts_and_text_apart() -> None:
    chunks = reported(["so</th", "ink>fo", "ur"], "<think>")
    assert [(chunk.reasoning, chunk.text) for chunk in chunks] == [
        ("so", ""),
        ("", "fo"),
        ("", "ur"),
    ]
    assert [chunk.completion_tokens for chunk in chunks] == [1, 2, 3]


def test_text_that_was_held_back_is_reported_at_the_end() -> None:
    *_, last = reported(["so</th"], "<think>")
    assert (last.reasoning, last.text, last.completion_tokens) == ("</th", "", 1)
    *_, last = reported(["four <", "/"])
    assert (last.reasoning, last.text, last.completion_tokens) == ("", "</", 2)


def test_a_token_that_is_reported_twice_counts_once() -> None:
    active = ActiveRequest(GenerationRequest("What?"), CancelToken(), lambda chunk: None)
    stream = active.reasoning = ReasoningStream(MARKS, "<think>", {7: "<think>", 8: "</think>"})
    active.report_text("so", 1, 20)
    active.report_text("", 2, 8)
    active.report_text("", 2, 8)
    assert stream.feed("four", 21).text == "four"
