"""Drawn images and questions: reproducible by seed and correct."""

from __future__ import annotations

import json
from random import Random

import numpy as np

from mlx_magic.demo import folder
from tools.demo_model.chat import SUMS, held_out_totals, total
from tools.demo_model.data import IGNORED, KINDS, Bucket, Filler, encode
from tools.demo_model.describe import as_json, detail, summary
from tools.demo_model.draw import CHARACTERS, draw, targets
from tools.demo_model.prompt import IMAGE_TOKENS
from tools.demo_model.sample_images import draw_all, scenes
from tools.demo_model.samples import digit_rows, sample
from tools.demo_model.scene import LARGEST, SMALLEST, shapes_scene, text_scene
from tools.demo_model.tokenizer import load
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
    patches, cells = targets(scene, draw(scene)[1])
    marked = [CHARACTERS[mark - 1] for mark in patches[patches > 0]]
    assert sorted(marked) == sorted("Lamp7")
    assert not cells.any()


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
    bucket = Bucket(4, 288, 8)
    filler, rng, rows = Filler(bucket, {}), Random(6), digit_rows(train=True)
    tokenizer = load(folder())
    while not filler.add(made := sample(rng, rows), encode(made, tokenizer)):
        pass
    images = filler.images
    arrays = bucket.arrays(bytearray(4_000_000))
    filler.write(arrays)
    assert (arrays["patches"][:, 0] != IGNORED).sum() == images
    used = arrays["features"][arrays["features"] < 8 * IMAGE_TOKENS]
    assert sorted(used) == list(range(images * IMAGE_TOKENS))
    assert arrays["images"].dtype == np.uint8


def test_held_out_sums_are_measured_and_never_trained_on() -> None:
    kept = held_out_totals()
    assert len(kept) == 22 * len(SUMS)
    rng = Random(4)
    trained = {total(rng, True).answer for _ in range(3000)}
    assert not trained & {turn.answer for turn in kept}
