"""Choices in Python: what is accepted, what the result has, and errors before a load."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mlx_magic
from mlx_magic import default_session
from mlx_magic.data.choices import read_choices
from mlx_magic.engine.request import Choices, GenerationRequest
from mlx_magic.errors import RequestError
from mlx_magic.testing import ScriptedBackend, use_scripted


class Shape(enum.Enum):
    RING = "a ring"
    BOX = "a box"


class Grade(enum.IntEnum):
    BAD = 1
    GOOD = 2


@pytest.fixture
def script() -> Iterator[ScriptedBackend]:
    yield use_scripted("not used")
    session = default_session.replace_current(None)
    assert session is not None
    session.close()


def test_result_has_choice_probabilities_and_confidence(script: ScriptedBackend) -> None:
    result = mlx_magic.ask("Which?", choices=["red", "blue"])
    assert result.choice == result.text == str(result) == "red"
    assert result.probabilities == {"red": 0.75, "blue": 0.25}
    assert result.confidence == 0.75
    assert result.finish_reason == "stop"
    assert result.usage.completion_tokens == 0
    assert result.timings.time_to_first_token is None
    again = pickle.loads(pickle.dumps(result))
    assert (again.choice, again.probabilities) == (result.choice, result.probabilities)


def test_result_without_choices_has_none(script: ScriptedBackend) -> None:
    result = mlx_magic.ask("Which?")
    assert (result.choice, result.probabilities, result.confidence) == (None, None, None)


def test_labels_that_hold_are_a_tuple(script: ScriptedBackend) -> None:
    result = mlx_magic.ask("Which?", choices=["red", "blue", "green"], multiple=True)
    assert result.choice == ("red",)
    assert result.text == "red"
    assert result.probabilities == pytest.approx({"red": 1, "blue": 1 / 3, "green": 1 / 9})
    assert result.confidence == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("choices", "labels", "first"),
    [
        (Shape, ("a ring", "a box"), Shape.RING),
        ([Shape.BOX, Shape.RING], ("a box", "a ring"), Shape.BOX),
        (Grade, ("1", "2"), Grade.BAD),
        (Literal["x", "y"], ("x", "y"), "x"),
        (Literal[3, 4], ("3", "4"), 3),
        (("x", "y"), ("x", "y"), "x"),
        (iter(["x", "y"]), ("x", "y"), "x"),
        ({"y", "x"}, ("x", "y"), "x"),
        (np.array(["x", "y"]), ("x", "y"), "x"),
        ([" x ", "y\n"], ("x", "y"), " x "),
    ],
)
def test_forms_of_choices(
    choices: Any, labels: tuple[str, ...], first: object, script: ScriptedBackend
) -> None:
    result = mlx_magic.ask("Which?", choices=choices)
    request = script.requests[0]
    assert request.choices is not None
    assert request.choices.labels == labels
    assert result.choice == first
    assert type(result.choice) is type(first)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "no answers"),
        (["x"], "only one answer"),
        (["x", "x"], "'x' twice"),
        (["x", " x"], "'x' twice"),
        (["x", ""], "empty answer"),
        ("x or y", "choices is 'x or y': use a list of str, an Enum class, or a Literal type."),
        ({"x": 1, "y": 2}, "use a list of str"),
        ([1, 2], "choices has 1, which is no text"),
        (["x", None], "choices has None"),
        (3, "choices is 3"),
        (int, "use a list of str"),
        ([b"x", b"y"], "choices has b'x'"),
        (enum.Enum("Empty", {}), "no answers"),
        (enum.Enum("Odd", {"A": None, "B": (1, 2)}), "neither a str nor an int"),
        ([str(n) for n in range(1001)], "1,001 answers"),
        (["x", "\ud800"], "not a character"),
    ],
)
def test_bad_choices_are_one_line_before_a_load(
    choices: Any, message: str, script: ScriptedBackend
) -> None:
    with pytest.raises(RequestError) as caught:
        mlx_magic.ask("Which?", choices=choices)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert script.loads == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": True}, "multiple needs choices"),
        ({"choices": ["x", "y"], "format": "json"}, "exclude each other"),
        ({"choices": ["x", "y"], "think": True}, "exclude each other"),
        ({"choices": ["x", "y"], "multiple": "no"}, "use True or False"),
        ({"choices": ["x", "y"], "schema": "a: str"}, "choices and schema exclude each other"),
        ({"choices": ["x", "y"], "examples": [(None, "z")]}, "none of the choices"),
    ],
)
def test_options_that_contradict_choices_are_refused(
    options: dict[str, Any], message: str, script: ScriptedBackend
) -> None:
    with pytest.raises(RequestError, match=message):
        mlx_magic.ask("Which?", **options)
    assert script.loads == 0


@given(
    st.one_of(
        st.none(),
        st.text(),
        st.integers(),
        st.lists(st.one_of(st.text(), st.none(), st.integers(), st.booleans()), max_size=5),
        st.dictionaries(st.text(), st.text(), max_size=3),
        st.sets(st.text(), max_size=4),
    )
)
def test_any_value_is_choices_or_a_one_line_error(value: Any) -> None:
    message = ""
    try:
        found = read_choices(value)
    except RequestError as error:
        message = str(error)
    if message:
        assert len(message.splitlines()) == 1
    else:
        assert found is None or len(set(found.labels)) == len(found.labels) >= 2


def test_stream_yields_the_choice(script: ScriptedBackend) -> None:
    stream = mlx_magic.stream("Which?", choices=["x y", "z"], stop=" ")
    assert list(stream) == ["x y"]
    assert stream.result.choice == "x y"


def test_stopped_request_has_no_choice() -> None:
    script = use_scripted("not used", hold="decode")
    try:
        result = mlx_magic.ask("Which?", choices=["x", "y"], timeout=0.2)
        assert result.finish_reason == "timeout"
        assert (result.choice, result.probabilities, result.text) == (None, None, "")
        script.release()
        assert mlx_magic.ask("Which?", choices=["x", "y"]).choice == "x"
    finally:
        session = default_session.replace_current(None)
        assert session is not None
        session.close()


def test_choices_are_a_value() -> None:
    request = GenerationRequest("Which?", choices=Choices(("x", "y")))
    assert request.chosen((0.2, 0.8)) == (1,)
    assert GenerationRequest("Which?", choices=request.choices, multiple=True).chosen(
        (0.5, 0.51)
    ) == (1,)
    with pytest.raises(RequestError, match="use Choices"):
        GenerationRequest("Which?", choices=["x", "y"])  # type: ignore[arg-type]


@pytest.mark.model
def test_bundled_model_chooses_what_it_would_write() -> None:
    image = Image.new("RGB", (64, 64), "white")
    image.paste((255, 0, 0), (16, 16, 48, 48))
    written = mlx_magic.ask("What is in the picture?", image, temperature=0).text
    choices = [written, "A blue circle.", "Nothing."]
    result = mlx_magic.ask("What is in the picture?", image, choices=choices)
    assert result.choice == written
    assert result.usage.image_tokens > 0
    assert result.usage.cached_tokens > 0
    assert result.peak_memory > 0
    bits = mlx_magic.ask("What is in the picture?", image, choices=choices, kv_bits=8)
    assert bits.choice == written
    assert bits.probabilities != result.probabilities


def test_map_has_choice_and_probability_and_the_journal_gives_members_back(
    script: ScriptedBackend, tmp_path: Path
) -> None:
    pytest.importorskip("pandas")
    images = [Image.new("L", (8, 8), shade) for shade in (10, 200)]

    def run() -> mlx_magic.MapResult:
        return mlx_magic.map("Which?", images, choices=Shape, journal=tmp_path / "journal.sqlite")

    first = run()
    assert list(first.frame["choice"]) == [Shape.RING, Shape.RING]
    assert list(first.frame["probability"]) == [0.75, 0.75]
    assert list(first.frame["confidence"]) == [0.75, 0.75]
    asked = len(script.requests)
    again = run()
    assert len(script.requests) == asked, "the journal has the answers"
    assert again[0].result is not None
    assert again[0].result.choice is Shape.RING
    assert again[0].result.probabilities == {Shape.RING: 0.75, Shape.BOX: 0.25}
    mlx_magic.map("Which?", images, choices=["x", "y"], journal=tmp_path / "journal.sqlite")
    assert len(script.requests) == 2 * asked


def test_examples_are_earlier_turns_with_the_text_of_a_choice(script: ScriptedBackend) -> None:
    example = (Image.new("L", (8, 8)), Shape.BOX)
    assert mlx_magic.ask("Which?", choices=Shape, examples=[example]).choice is Shape.RING
    [turn] = script.requests[0].history
    assert turn.answer == "a box"
    assert len(turn.images) == 1
