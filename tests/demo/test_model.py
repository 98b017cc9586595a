"""The bundled model: small, loaded without a network, correct on held-out images."""

from __future__ import annotations

import json
import socket
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import load
from mlx_vlm.prompt_utils import apply_chat_template

from mlx_magic.demo import folder
from tools.demo_model.boxes import SCALE
from tools.demo_model.draw import draw, model_input
from tools.demo_model.evaluate import Chat, held_out_samples, measure, overlap
from tools.demo_model.fresh import Box, render
from tools.demo_model.sample_images import draw_all
from tools.demo_model.samples import any_scene, digit_rows
from tools.demo_model.scene import Bar, Chart, Scene
from tools.demo_model.turns import REFUSAL

IMAGES = draw_all()
Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Load the model with every connection refused."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("this test allows no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(socket, "getaddrinfo", refused)
        model, processor = load(str(folder()))
    model.set_dtype(mx.float32)
    return model, processor


def ask(loaded: Loaded, question: str, *names: str, system: str | None = None) -> str:
    """Ask once, on sample images."""
    chat = Chat(*loaded)
    if system:
        chat.messages.append({"role": "system", "content": system})
    return chat.ask(question, [IMAGES[f"{name}.png"] for name in names])


def test_demo_model_folder_is_small() -> None:
    files = list(folder().iterdir())
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert {"README.md", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in files
    }


@pytest.mark.parametrize(
    ("names", "question", "answer"),
    [
        (["shapes"], "What colour is the circle?", "The circle is red."),
        (["shapes"], "what color is the circle", "The circle is red."),
        (["shapes"], "How many shapes are there?", "There are 3 shapes."),
        (["shapes"], "Where is the star?", "The star is at the top right."),
        (["shapes"], "What shape is the blue one?", "The blue shape is a square."),
        (["shapes"], "Is there a green triangle?", "No, there is no green triangle."),
        (["shapes"], "What is the background?", "The background is white."),
        (["shapes"], "What does it say?", "There is no text."),
        (["shapes"], "What animal is this?", REFUSAL),
        (["two"], "How many circles are there?", "There are 2 circles."),
        (["digit"], "What digit is this?", "The digit is 7."),
        (["word"], "What does it say?", 'The word is "violin".'),
        (["number"], "What number is this?", "The number is 4827."),
        (["shapes", "two"], "Which picture shows a star?", "The first picture shows a star."),
        (["shapes", "two"], "Which picture has more shapes?",
         "The second picture has more: 4 against 3."),
        ([], "What is 3 plus 4?", "3 plus 4 is 7."),
        ([], "Who won the election?", REFUSAL),
        ([], "What is in the picture?", "There is no picture."),
    ],
)  # fmt: skip
def test_demo_model_answers_sample_questions(
    loaded: Loaded, names: list[str], question: str, answer: str
) -> None:
    assert ask(loaded, question, *names) == answer


def test_one_word_answers_follow_the_system_prompt(loaded: Loaded) -> None:
    system = "Answer in one word."
    assert ask(loaded, "What colour is the circle?", "shapes", system=system) == "Red"
    assert ask(loaded, "How many shapes are there?", "shapes", system=system) == "Three"


def test_json_and_detail(loaded: Loaded) -> None:
    held = json.loads(ask(loaded, "Describe the picture as JSON.", "shapes"))
    assert held["shapes"][0] == {"shape": "circle", "colour": "red"}
    detail = ask(loaded, "Describe the picture in detail.", "shapes")
    assert detail.count(".") == 4


def test_boxes_overlap_the_true_ones(loaded: Loaded) -> None:
    one = json.loads(ask(loaded, "Where is the red circle? Give its box.", "shapes"))
    assert one["label"] == "red circle"
    assert overlap(box_of(one), (0.086, 0.136, 0.354, 0.404)) > 0.85
    every = json.loads(ask(loaded, "Detect all shapes.", "shapes"))
    assert [found["label"] for found in every] == ["red circle", "blue square", "yellow star"]


def box_of(answer: dict[str, Any]) -> Box:
    """Return an answered box as fractions."""
    left, upper, right, lower = (value / SCALE for value in answer["bbox_2d"])
    return left, upper, right, lower


@pytest.mark.parametrize(
    "told",
    [
        'Answer with JSON: {"count": integer, "background": "white" | "black"}',
        "Answer with JSON with the fields count and background.",
        'Answer with JSON that matches this schema: {"type":"object","properties":{"count":{"type":'
        '"integer"},"background":{"type":"string"}},"required":["count","background"]}',
    ],
)
def test_json_has_the_fields_that_the_question_names(loaded: Loaded, told: str) -> None:
    answer = json.loads(ask(loaded, f"Describe the picture.\n\n{told}", "shapes"))
    assert answer == {"count": 3, "background": "white"}


@pytest.mark.parametrize("word", ["colour", "color"])
def test_both_spellings_and_listed_choices(loaded: Loaded, word: str) -> None:
    assert ask(loaded, f"What {word} is the star?", "shapes") == "The star is yellow."
    listed = f"What {word} is the star?\nAnswer with one of: red, yellow, blue."
    assert ask(loaded, listed, "shapes") == "yellow"


def test_reads_a_bar_chart(loaded: Loaded) -> None:
    bars = [Bar("", "red", 20), Bar("", "blue", 50), Bar("", "green", 35)]
    chart = Chart(bars, 52, [0, 10, 20, 30, 40, 50], 0.2, 0.05, 0.1, 0.08, 0.8, 0.08)
    image = render(Scene(320, 320, "white", chart=chart, seed=4)).image
    chat = Chat(*loaded)
    assert chat.ask("Which bar is the highest?", [image]) == "The blue bar is the highest."
    value = chat.ask("What is the value of the green bar?")
    assert 31 <= int(value.removeprefix("The green bar is ").rstrip(".")) <= 39


def test_five_turns_with_an_image_each(loaded: Loaded) -> None:
    chat = Chat(*loaded)
    for name, question, answer in (
        ("shapes", "How many shapes are there?", "There are 3 shapes."),
        ("two", "Describe the picture.", "A green triangle, a purple circle, an orange circle and "
         "a red cross on a black background."),
        ("word", "What does it say?", 'The word is "violin".'),
        ("number", "What number is this?", "The number is 4827."),
        ("digit", "What digit is this?", "The digit is 7."),
    ):  # fmt: skip
        assert chat.ask(question, [IMAGES[f"{name}.png"]]) == answer


def test_three_turns_with_a_second_image_later(loaded: Loaded) -> None:
    chat = Chat(*loaded)
    first, second = IMAGES["shapes.png"], IMAGES["two.png"]
    assert chat.ask("How many shapes are there?", [first]) == "There are 3 shapes."
    assert chat.ask("How many shapes are there?", [second]) == "There are 4 shapes."
    assert chat.ask("Which picture shows a star?") == "The first picture shows a star."


def test_accuracy_on_held_out_data(loaded: Loaded) -> None:
    scores = measure(*loaded, held_out_samples(1, seed=3)[:12])["scores"]
    assert scores["all"]["right"] >= 0.9 * scores["all"]["of"]


def test_training_inputs_equal_the_processor_output(loaded: Loaded) -> None:
    from random import Random

    rng, rows = Random(4), digit_rows(train=False)
    for _ in range(8):
        image = draw(any_scene(rng, rows, train=False))[0]
        made = loaded[1](images=[image], text=["<image>"])["pixel_values"]
        seen = np.array(made)[0, 0].transpose(1, 2, 0)
        assert np.allclose(seen, model_input(image) / 127.5 - 1, atol=1e-6)


def test_template_accepts_strings_and_lists(loaded: Loaded) -> None:
    model, processor = loaded
    plain = apply_chat_template(processor, model.config, "What is this?", num_images=2)
    assert plain == ("<|im_start|>User:<image><image> What is this?<end_of_utterance>\nAssistant:")
    history = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    assert apply_chat_template(processor, model.config, history, num_images=1) == (
        "<|im_start|>System: Be kind.<end_of_utterance>\nUser:<image> Why?<end_of_utterance>\n"
        "Assistant: So.<end_of_utterance>\nUser: And?<end_of_utterance>\nAssistant:"
    )
