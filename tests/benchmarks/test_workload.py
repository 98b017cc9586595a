from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import workload
from benchmarks.workload import Answer, Ask, Burst, DrawnImages

IMAGE = {"type": "image"}
seconds = st.floats(min_value=0.001, max_value=1000)
answers = st.builds(
    Answer, first=seconds, last=seconds, tokens=st.integers(1, 500), text=st.text(max_size=20)
)
bursts = st.builds(
    Burst,
    wall=seconds,
    answers=st.lists(answers, min_size=1, max_size=4).map(tuple),
    peak=st.integers(0, 2**40),
)


def test_image_stays_in_the_first_turn_of_a_chat() -> None:
    ask = Ask("third?", "a.png", (("first?", "one"), ("second?", "two")))
    turns = ask.messages(IMAGE)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[0]["content"] == [IMAGE, {"type": "text", "text": "first?"}]
    assert turns[1]["content"] == "one"
    assert turns[4]["content"] == [{"type": "text", "text": "third?"}]


def test_single_question_has_its_image() -> None:
    assert Ask("what?", "a.png").messages(IMAGE) == [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "what?"}]}
    ]


@given(bursts)
def test_burst_round_trips_through_json(burst: Burst) -> None:
    assert Burst.from_json(json.loads(json.dumps(burst.as_json()))) == burst
    assert "text" not in json.dumps(burst.numbers())


def test_burst_metrics() -> None:
    burst = Burst(2.0, (Answer(0.5, 1.5, 11, "a"), Answer(1.25, 2.0, 9, "b")))
    assert (burst.rate, burst.last_first) == (10.0, 1.25)
    assert burst.answers[0].decode == 10.0


def test_slow_step_does_not_change_the_median() -> None:
    assert Answer.of([1.0, 1.5, 2.0, 9.0, 9.5], 5, "a").step == 0.5
    assert Answer.of([1.0], 1, "a").step == 0.0


@pytest.mark.parametrize(("same", "image_count"), [(True, 1), (False, 8)])
def test_questions_of_a_load_and_of_its_turns_are_distinct(
    tmp_path: Path, same: bool, image_count: int
) -> None:
    drawn = DrawnImages(tmp_path, (32, 24))
    first, second = (workload.load(drawn, 8, turn, same=same) for turn in (1, 2))
    assert len({ask.question for ask in [*first, *second]}) == 16
    for asks in (first, second):
        assert len({Path(ask.image).read_bytes() for ask in asks}) == image_count
    assert not {ask.image for ask in first} & {ask.image for ask in second}


def test_text_comparison_ignores_special_tokens() -> None:
    assert workload.matches(["ab\ufffd", "c", "d"], ["a\ufffdb", "c", "x"]) == 2
    assert workload.matches(["One. Two"], ["One.<end_of_utterance> Two<|im_end|>"]) == 1
    assert workload.matches(["1 < 2, 3 > 2"], ["1  2, 3  2"]) == 0
    with pytest.raises(ValueError, match="zip"):
        workload.matches(["a"], [])
