"""Drawn images and questions: reproducible by seed and correct."""

from __future__ import annotations

import json
from random import Random

import numpy as np
from PIL import Image

from mlx_magic.demo import folder
from tools.demo_model.boxes import one_box, several_boxes
from tools.demo_model.charts import extreme, value
from tools.demo_model.chat import SUMS, held_out_totals, total
from tools.demo_model.data import IGNORED, KINDS, Bucket, Filler, encode
from tools.demo_model.describe import as_json, detail, summary
from tools.demo_model.draw import CHARACTERS, draw, targets
from tools.demo_model.evaluate import is_right, overlap
from tools.demo_model.fields import request
from tools.demo_model.fresh import render
from tools.demo_model.prompt import IMAGE_TOKENS
from tools.demo_model.sample_images import draw_all, scenes
from tools.demo_model.samples import digit_rows, sample
from tools.demo_model.scene import (
    LARGEST,
    SMALLEST,
    Bar,
    Chart,
    Scene,
    Shape,
    chart_scene,
    shapes_scene,
    text_scene,
)
from tools.demo_model.tokenizer import load
from tools.demo_model.turns import Turn
from tools.demo_model.unknown import unknown
from tools.demo_model.words import printed, word_list


def test_samples_are_reproducible_by_seed() -> None:
    rows = digit_rows(train=True)
    assert sample(Random(7), rows) == sample(Random(7), rows)
    assert sample(Random(7), rows) != sample(Random(8), rows)


def test_images_are_reproducible_by_seed() -> None:
    first, second = (draw(shapes_scene(Random(5)))[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert {name: image.size for name, image in draw_all().items()}["shapes.png"] == (320, 320)


def test_images_stay_within_the_sizes() -> None:
    rng = Random(2)
    for _ in range(40):
        scene = shapes_scene(rng)
        assert draw(scene)[0].size == (scene.width, scene.height)
        assert min(scene.width, scene.height) >= SMALLEST
        assert max(scene.width, scene.height) <= LARGEST


def test_held_out_words_and_digits_are_never_trained_on() -> None:
    train, measured = word_list()
    assert not set(train) & set(measured)
    rng = Random(3)
    assert not {printed(rng, True).lower() for _ in range(3000)} & set(measured)
    rows, kept = digit_rows(train=True), digit_rows(train=False)
    assert all(not set(rows[digit]) & set(kept[digit]) for digit in range(10))
    assert not {unknown(rng, True).question for _ in range(500)} & {
        unknown(rng, False).question for _ in range(500)
    }


def test_answers_match_the_scene() -> None:
    scene = scenes()["shapes.png"]
    assert summary(scene) == "a red circle, a blue square and a yellow star on a white background"
    held = as_json(Random(1), scene)
    assert held is not None
    assert json.loads(held.answer)["shapes"][1] == {"shape": "square", "colour": "blue"}
    told = detail(Random(1), scene)
    assert told is not None
    assert "A medium yellow star is at the top right." in told.answer


def test_character_boxes_match_their_positions() -> None:
    scene = text_scene(Random(1), "Lamp7", shapes=0)
    patches, cells, boxes = targets(scene, draw(scene)[1])
    marked = [CHARACTERS[mark - 1] for mark in patches[patches > 0]]
    assert sorted(marked) == sorted("Lamp7")
    assert not cells.any()
    assert not boxes.any()


def test_only_answer_tokens_are_trained_on() -> None:
    tokenizer, rows = load(folder()), digit_rows(train=True)
    made = sample(Random(11), rows)
    tokens, weights, answers = encode(made, tokenizer)
    answer = [t for t, mark in zip(tokens, answers, strict=True) if mark and (mark - 1) // 32 == 0]
    text = tokenizer.decode(answer, skip_special_tokens=False)
    assert text == f" {made.turns[0].answer}<end_of_utterance>"
    assert KINDS[(next(mark for mark in answers if mark) - 1) % 32] == made.turns[0].kind
    assert all((w > 0) == (mark > 0) for w, mark in zip(weights, answers, strict=True))


def test_quoted_text_is_tokenized_letter_by_letter() -> None:
    tokens = load(folder()).encode(' The word is "lamp".').tokens
    assert tokens[-6:] == ["l", "a", "m", "p", '"', "."]


def test_batch_contains_its_images() -> None:
    bucket = Bucket(4, 640, 16)
    filler, rng, rows = Filler(bucket, {}), Random(6), digit_rows(train=True)
    tokenizer = load(folder())
    while not filler.add(made := sample(rng, rows), encode(made, tokenizer)):
        pass
    images = filler.images
    arrays = bucket.arrays(bytearray(8_000_000))
    filler.write(arrays)
    assert (arrays["patches"][:, 0] != IGNORED).sum() == images
    used = arrays["features"][arrays["features"] < 16 * IMAGE_TOKENS]
    assert sorted(used) == list(range(images * IMAGE_TOKENS))
    assert arrays["images"].dtype == np.uint8


def test_held_out_sums_are_measured_and_never_trained_on() -> None:
    kept = held_out_totals()
    assert len(kept) == 22 * len(SUMS)
    rng = Random(4)
    trained = {total(rng, True).answer for _ in range(3000)}
    assert not trained & {turn.answer for turn in kept}


def painted(image: Image.Image) -> tuple[float, float, float, float]:
    """Return the edges of what differs from the corner pixel, as fractions."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 150)
    height, width = pixels.shape[:2]
    return (
        columns.min() / width,
        rows.min() / height,
        (columns.max() + 1) / width,
        (rows.max() + 1) / height,
    )


def test_boxes_fit_the_pixels_of_both_renderers() -> None:
    for seed, kind in enumerate(("circle", "square", "triangle", "star", "cross") * 3):
        shape = Shape(kind, "red", 0.45, 0.6, 0.2, seed)
        scene = Scene(400, 300, "white", [shape], seed=seed)
        assert overlap(scene.box(shape), painted(draw(scene)[0])) > 0.95
        fresh = render(scene)
        assert overlap(fresh.boxes[0], painted(fresh.image)) > 0.9


def test_box_answers_name_every_shape_from_left_to_right() -> None:
    scene = Scene(200, 100, "white", [
        Shape("star", "red", 0.8, 0.5, 0.1, 1), Shape("circle", "blue", 0.2, 0.5, 0.1, 2),
    ])  # fmt: skip
    made = [several_boxes(Random(seed), scene) for seed in range(10)]
    answered = max((json.loads(turn.answer) for turn in made if turn), key=len)
    assert [one["label"] for one in answered] == ["blue circle", "red star"]
    assert answered[0]["bbox_2d"] == [125, 355, 275, 645]
    one = one_box(Random(1), scene)
    assert one is not None
    assert json.loads(one.answer)["label"] == scene.shapes[one.named[0]].name


def test_chart_answers_match_the_bars() -> None:
    bars = [Bar("A", "red", 12), Bar("B", "red", 40), Bar("C", "red", 25)]
    chart = Chart(bars, 50, [0, 25, 50], 0.2, 0.1, 0.1, 0.2, 0.8, 0.1)
    scene = Scene(300, 300, "white", chart=chart)
    answers = {extreme(Random(seed), scene).answer for seed in range(40)}
    assert answers == {"Bar B is the highest.", "Bar A is the lowest."}
    told = {value(Random(seed), scene).answer for seed in range(60)}
    assert told == {"Bar A is 12.", "Bar B is 40.", "Bar C is 25."}
    assert np.allclose(chart.box(1), (0.4567, 0.24, 0.6433, 0.8), atol=1e-3)


def test_charts_have_two_to_five_bars_that_differ() -> None:
    rng = Random(8)
    for _ in range(200):
        chart = chart_scene(rng).chart
        assert chart is not None
        values = [bar.value for bar in chart.bars]
        assert 2 <= len(values) == len(set(values)) <= 5
        assert 0.15 * max(values) <= min(values)
        assert max(values) <= chart.limit
        assert 2 <= len(chart.ticks) <= 10
        assert chart.ticks[-1] <= chart.limit


def test_requests_for_json_are_answered_with_the_fields_they_name() -> None:
    rng, seen = Random(5), set()
    for _ in range(300):
        turn = request(rng, chart_scene(rng) if rng.random() < 0.2 else shapes_scene(rng))
        if turn is None:
            continue
        held = json.loads(turn.answer)
        one = held if isinstance(held, dict) else held[0]
        assert all(name in turn.question for name in one)
        seen.add((turn.kind, type(held).__name__))
    assert seen == {(kind, form) for kind in ("fields", "schema") for form in ("dict", "list")}


def test_numbers_read_off_an_image_need_not_be_exact() -> None:
    chart = Turn("", "The red bar is 40.", "chart value")
    assert is_right("The red bar is 44.", chart, [])
    assert not is_right("The red bar is 45.", chart, [])
    assert not is_right("The blue bar is 40.", chart, [])
    box = Turn("", '{"bbox_2d": [0, 0, 500, 500], "label": "red star"}', "boxes", named=(0,))
    near = '{"bbox_2d": [0, 0, 500, 400], "label": "red star"}'
    assert is_right(near, box, [(0.0, 0.0, 0.5, 0.5)])
    assert not is_right(near.replace("red", "blue"), box, [(0.0, 0.0, 0.5, 0.5)])
    assert not is_right(near, box, [(0.4, 0.4, 0.9, 0.9)])
    assert not is_right("There is none.", box, [(0.0, 0.0, 0.5, 0.5)])
    assert is_right('{"a":1}', Turn("", '{"a": 1}', "schema"), [])
