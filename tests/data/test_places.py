"""Boxes and points of answers, in each dialect."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic import VisionResult
from mlx_magic.data.places.dialects import BY_NAME, DIALECTS
from mlx_magic.data.places.layout import Rectangle, label_positions
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.places.values import Box, Boxes, Point
from mlx_magic.errors import RequestError
from mlx_magic.images.opening import ImageInput, open_images

WIDE, TALL = (400, 100), (90, 300)


def image(size: tuple[int, int] = WIDE, **options: Any) -> ImageInput:
    return open_images([Image.new("RGB", size, "white")], **options)[0]


def result(
    text: str, model_type: str = "qwen3_vl", size: tuple[int, int] = WIDE, **known: Any
) -> VisionResult:
    images = known.pop("images", None) or (image(size),)
    prompt = known.pop("prompt", "Where?")
    grounding = Grounding(**{"model_type": model_type, **known})
    return VisionResult(text, "m", "stop", images=images, prompt=prompt, grounding=grounding)


@pytest.mark.parametrize(
    ("model_type", "text", "box"),
    [
        ("qwen2_vl",
         "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(250,100),(500,900)<|box_end|>",
         (100, 10, 200, 90)),
        ("qwen3_vl", '```json\n[{"bbox_2d": [250, 100, 500, 900], "label": "cat"}]\n```',
         (100, 10, 200, 90)),
        ("qwen3_vl_moe", '{"bbox_2d": [250, 100, 500, 900], "label": "cat"}', (100, 10, 200, 90)),
        ("paligemma", "<loc0256><loc0512><loc0768><loc1023> cat", (200, 25, 400 * 1023 / 1024, 75)),
        ("florence2", "cat<loc_0><loc_499><loc_999><loc_599>", (0.2, 49.95, 399.8, 59.95)),
    ],
)  # fmt: skip
def test_each_dialect_is_read_in_pixels_of_the_original(
    model_type: str, text: str, box: tuple[float, ...]
) -> None:
    [found] = result(text, model_type).boxes
    assert found.xyxy == pytest.approx(box)
    assert (found.label, found.image, found.clipped, found.inverted) == ("cat", 0, False, False)


def test_pixels_of_the_resized_input_become_pixels_of_the_original() -> None:
    answer = '[{"bbox_2d": [140, 42, 280, 84], "label": "cat"}]'
    found = result(answer, "qwen2_5_vl", seen=((560, 84),))
    assert [box.xyxy for box in found.boxes] == [(100, 50, 200, 100)]


def test_without_the_resized_size_pixels_give_no_boxes() -> None:
    found = result('[{"bbox_2d": [140, 42, 280, 84]}]', "qwen2_5_vl")
    assert not found.boxes
    assert "size" in found.boxes.note


@pytest.mark.parametrize(
    ("model_type", "text"),
    [
        ("molmo", '<point x="25.0" y="50" alt="nose">nose</point>'),
        ("molmo", 'Here: <points x1="25.0" y1="50.0" alt="nose">the nose</points>'),
        ("molmo2", '<points coords="1 1 250 500">nose</points>'),
        ("qwen3_vl", '{"point_2d": [250, 500], "label": "nose"}'),
    ],
)
def test_points_are_read(model_type: str, text: str) -> None:
    found = result(text, model_type)
    assert found.points == (Point(100, 50, "nose"),)
    assert not found.boxes


def test_molmo_gives_all_points_of_an_element() -> None:
    text = 'Counting <points x1="10" y1="20" x2="30" y2="40" x3="50" alt="cats">cats</points>.'
    assert [point.xy for point in result(text, "molmo").points] == [(40, 20), (120, 40)]


def test_molmo2_says_on_which_image_a_point_is() -> None:
    images = (image(WIDE), image(TALL))
    found = result('<points coords="1 1 500 500;2 1 500 500">x</points>', "molmo2", images=images)
    assert found.points == (Point(200, 50, "x", 0), Point(45, 150, "x", 1))


def test_a_label_of_qwen2_holds_for_all_boxes_after_it() -> None:
    text = (
        "<|object_ref_start|>cats<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>"
        "<|box_start|>(500,500),(1000,1000)<|box_end|>"
    )
    assert [box.label for box in result(text, "qwen2_vl").boxes] == ["cats", "cats"]


def test_coordinates_without_the_marks_are_no_boxes() -> None:
    text = "The line goes through (100,200),(300,400)."
    assert result(text, "qwen2_vl").boxes == ()


def test_marks_that_the_text_lost_are_read() -> None:
    marked = "cat<loc_0><loc_0><loc_499><loc_499>"
    found = result("cat", "florence2", marked=marked)
    assert found.text == "cat"
    assert [box.label for box in found.boxes] == ["cat"]


def test_florence_gives_several_boxes_for_a_label_and_bounds_of_quadrilaterals() -> None:
    places = "".join(f"<loc_{n}>" for n in (0, 0, 99, 0, 99, 99, 0, 99))
    assert len(result(f"cat{places}", "florence2", prompt="<OD>").boxes) == 2
    [box] = result(f"word{places}", "florence2", prompt="<OCR_WITH_REGION>").boxes
    assert box.xyxy == pytest.approx((0.2, 0.05, 39.8, 9.95))
    task = "<REFERRING_EXPRESSION_SEGMENTATION>"
    assert result(places, "florence2", prompt=task).boxes == ()


def test_paligemma_segments_have_their_box() -> None:
    text = "<loc0000><loc0000><loc0512><loc0512><seg001><seg002> cat ; <loc0000>"
    assert [box.label for box in result(text, "paligemma").boxes] == ["cat"]
    assert result("<loc0001>" * 5, "paligemma").boxes == ()


def test_an_unknown_dialect_gives_no_boxes_and_says_so() -> None:
    found = result('{"bbox_2d": [1, 2, 3, 4]}', "smolvlm").boxes
    assert not found
    assert "smolvlm" in found.note


def test_box_scale_of_a_config_names_plain_json() -> None:
    config = {"model_type": "smolvlm", "box_scale": 1000}
    known = Grounding.of_config(config)
    found = replace(result('{"bbox_2d": [0, 0, 500, 500], "label": "x"}'), grounding=known)
    assert [box.xyxy for box in found.boxes] == [(0, 0, 200, 50)]


@pytest.mark.parametrize("scale", ["1000", 0, -1, True, None, 1e300, math.nan, [1]])
def test_a_box_scale_that_is_none_is_ignored(scale: object) -> None:
    assert Grounding.of_config({"box_scale": scale}).scale is None


def test_a_person_names_the_dialect_and_the_scale() -> None:
    answer = result('{"x1": 0.25, "y1": 0.5, "x2": 0.5, "y2": 1, "name": "cat"}', "smolvlm")
    assert answer.boxes == ()
    assert answer.with_dialect("json", scale=1).boxes == (Box(100, 50, 200, 100, "cat"),)
    pixels = result('{"bbox_2d": [10, 10, 20, 20]}', "smolvlm", seen=((40, 20),))
    assert pixels.with_dialect(scale="pixels").boxes == (Box(100, 50, 200, 100),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dialect": "yolo"}, "json"),
        ({"dialect": 3}, "json"),
        ({}, "scale"),
        ({"scale": 0}, "above 0"),
        ({"scale": math.nan}, "above 0"),
        ({"scale": "pixel"}, "pixels"),
        ({"scale": True}, "above 0"),
    ],
)
def test_a_dialect_or_scale_that_is_none_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        result("").with_dialect(**arguments)


def test_boxes_outside_or_inverted_are_kept_and_marked() -> None:
    boxes = [[900, 500, 1200, 1100], [-5, 0, 10, 10], [500, 900, 100, 100], [2000, 0, 3000, 10]]
    text = json.dumps([{"bbox_2d": box} for box in boxes])
    found = result(text).boxes
    assert [box.xyxy for box in found] == [
        (360, 50, 400, 100),
        (0, 0, 4, 1),
        (40, 10, 200, 90),
        (400, 0, 400, 1),
    ]
    assert [(box.clipped, box.inverted) for box in found] == [
        (True, False),
        (True, False),
        (False, True),
        (True, False),
    ]


def test_original_pixels_are_those_before_max_pixels() -> None:
    small = image((1000, 500), max_pixels=5_000)
    [box] = result('{"bbox_2d": [0, 0, 1000, 1000]}', images=(small,)).boxes
    assert small.size == (100, 50)
    assert box.xyxy == (0, 0, 1000, 500)


def test_several_images_need_an_answer_that_names_one() -> None:
    images = (image(WIDE), image(TALL))
    text = '[{"bbox_2d": [0, 0, 500, 500], "image": 2}, {"bbox_2d": [0, 0, 500, 500]}]'
    found = result(text, images=images).boxes
    assert list(found) == [Box(0, 0, 45, 150, image=1)]
    assert "which of the images" in found.note
    assert result('{"bbox_2d": [0, 0, 5, 5], "image": 3}', images=images).boxes == ()
    assert result('{"bbox_2d": [0, 0, 5, 5]}', earlier_images=1).boxes == ()


def test_images_that_were_cropped_give_no_boxes() -> None:
    assert "crop" in result('{"bbox_2d": [0, 0, 5, 5]}', cropped=True).boxes.note


def test_a_list_that_was_cut_off_gives_its_whole_boxes() -> None:
    text = '[{"bbox_2d": [0, 0, 500, 500], "label": "a"}, {"bbox_2d": [0, 0, 50'
    assert [box.label for box in result(text).boxes] == ["a"]


def test_a_result_without_images_or_of_an_earlier_release_has_no_boxes() -> None:
    plain = VisionResult('{"bbox_2d": [0, 0, 5, 5]}', "m", "stop")
    assert (plain.boxes, plain.points, plain.annotated) == ((), (), None)
    assert plain.boxes.note


numbers = st.integers(0, 999)
corners = st.tuples(numbers, numbers, numbers, numbers)
words = st.text("abc é漢", min_size=1, max_size=8).map(str.strip).filter(bool)
WRITE: dict[str, Callable[[tuple[int, ...], str], str]] = {
    "qwen2_vl": lambda box, label: (
        f"<|object_ref_start|>{label}<|object_ref_end|>"
        f"<|box_start|>({box[0]},{box[1]}),({box[2]},{box[3]})<|box_end|>"
    ),
    "qwen2_5_vl": lambda box, label: json.dumps({"bbox_2d": box, "label": label}),
    "qwen3_vl": lambda box, label: json.dumps({"bbox_2d": box, "label": label}),
    "paligemma": lambda box, label: (
        f"<loc{box[1]:04}><loc{box[0]:04}><loc{box[3]:04}><loc{box[2]:04}> {label} ; "
    ),
    "florence2": lambda box, label: label + "".join(f"<loc_{n}>" for n in box),
}
SCALE = {"qwen2_5_vl": (560, 84), "paligemma": (1024, 1024)}


@pytest.mark.parametrize("name", WRITE)
@given(st.lists(st.tuples(corners, words), max_size=4), st.sampled_from([WIDE, TALL, (1, 7)]))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_back(
    name: str, written: list[tuple[tuple[int, ...], str]], size: tuple[int, int]
) -> None:
    text = "".join(WRITE[name](box, label) for box, label in written)
    known = VisionResult(
        text,
        "m",
        "stop",
        images=(_images[size],),
        grounding=Grounding(model_type=name, seen=((560, 84),)),
    )
    width, height = SCALE.get(name, (1000, 1000))
    shift = 0.5 if name == "florence2" else 0
    expected = []
    for box, label in written:
        xs = [(x + shift) * size[0] / width for x in box[0::2]]
        ys = [(y + shift) * size[1] / height for y in box[1::2]]
        clipped = max(xs) > size[0] or max(ys) > size[1]
        (x1, x2), (y1, y2) = (
            sorted(min(x, size[0]) for x in xs),
            sorted(min(y, size[1]) for y in ys),
        )
        inverted = xs[0] > xs[1] or ys[0] > ys[1]
        expected.append(Box(x1, y1, x2, y2, " ".join(label.split()), 0, clipped, inverted))
    assert list(known.boxes) == expected


_images = {size: image(size) for size in (WIDE, TALL, (1, 7))}
_pieces = st.sampled_from(
    [
        *'{}[]"<>(),:;=. \n0', "bbox_2d", '"bbox_2d":', "[1,2,3,4]", "<loc_", "<loc_5>",
        "<loc0005>",
        "<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<point ", "<points ", 'x="1"',
        'y1="5"', 'coords="', "</point>", "NaN", "1e999", "-", "\ud800", "9" * 30, "null", '"x1":',
    ]
)  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: str(dialect.name))
@given(st.one_of(st.text(), st.lists(_pieces, max_size=40).map("".join)))
@settings(max_examples=60, deadline=None)
def test_garbage_never_raises_and_boxes_are_within_the_image(dialect: Any, text: str) -> None:
    scale = 10.0 if dialect.scale is None else dialect.scale
    known = Grounding(dialect=dialect.name, scale=scale, seen=((10, 10),))
    found = VisionResult(text, "m", "stop", images=(_images[WIDE],), grounding=known)
    for box in found.boxes:
        assert 0 <= box.x1 <= box.x2 <= 400
        assert 0 <= box.y1 <= box.y2 <= 100
        assert box.label.isprintable()
    for point in found.points:
        assert 0 <= point.x <= 400
        assert 0 <= point.y <= 100


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 20_000, "[1," * 900 + "1," * 50_000, "<loc_1>" * 15_000,
     "<points " + 'x="1" ' * 20_000, "<|box_start|>(1,1)" * 6_000, "<loc0001>" * 12_000,
     '{"bbox_2d": [1,1,2,2]},' * 5_000, "<points x=" + " " * 100_000, 'alt="' * 20_000,
     "<|box_start|>(" + " " * 100_000, '{"a":"' * 20_000, '<points coords="' + "1" * 100_000],
    ids=["arrays", "objects", "numbers", "locs", "attributes", "boxes", "loc4", "many", "spaces",
         "alts", "box-spaces", "strings", "coords"],
)  # fmt: skip
def test_hostile_answers_are_read_quickly(name: str, text: str) -> None:
    known = Grounding(dialect=name, scale=10.0)
    found = VisionResult(text, "m", "stop", images=(_images[WIDE],), grounding=known)
    assert len(found.boxes) <= 10_000


def test_boxes_are_pickled_and_the_result_keeps_its_dialect() -> None:
    answer = result('{"bbox_2d": [0, 0, 500, 500], "label": "cat"}')
    again = pickle.loads(pickle.dumps(answer))
    assert again.boxes == answer.boxes
    assert pickle.loads(pickle.dumps(answer.boxes)).to_coco() == answer.boxes.to_coco()


def test_coco_has_images_annotations_and_categories() -> None:
    text = json.dumps(
        [{"bbox_2d": [0, 0, 500, 500], "label": label} for label in ("cat", "dog", "cat")]
    )
    coco = result(text).boxes.to_coco()
    assert json.loads(json.dumps(coco)) == coco
    assert coco["images"] == [{"id": 0, "file_name": "list[0]", "width": 400, "height": 100}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [each["category_id"] for each in coco["annotations"]] == [1, 2, 1]
    assert coco["annotations"][0] | {"segmentation": []} == {
        "id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 200, 50], "area": 10_000,
        "iscrowd": 0, "segmentation": [],
    }  # fmt: skip


class FakeSupervision:
    class Detections:
        def __init__(self, xyxy: Any, class_id: Any, data: Any) -> None:
            self.xyxy, self.class_id, self.data = xyxy, class_id, data


def test_supervision_gets_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", FakeSupervision)
    boxes = Boxes([Box(1, 2, 3, 4, "b"), Box(5, 6, 7, 8, "a")], [image()])
    found = boxes.to_supervision()
    assert found.xyxy.dtype == np.float32
    assert found.xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.class_id.tolist() == [0, 1]
    assert found.data["class_name"].tolist() == ["b", "a"]
    assert Boxes((), [image()]).to_supervision().xyxy.shape == (0, 4)


def test_supervision_takes_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", FakeSupervision)
    boxes = Boxes([Box(1, 2, 3, 4, image=0), Box(5, 6, 7, 8, image=1)], [image(), image()])
    assert boxes.to_supervision(image=1).xyxy.tolist() == [[5, 6, 7, 8]]
    with pytest.raises(RequestError, match="2 images"):
        boxes.to_supervision()
    with pytest.raises(RequestError, match="no image 2"):
        boxes.to_supervision(image=2)


def test_without_supervision_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(RequestError, match="%pip install supervision"):
        Boxes().to_supervision()


def test_annotated_is_a_copy_at_the_original_size() -> None:
    data = io.BytesIO()
    Image.new("RGB", (600, 300), "white").save(data, "PNG")
    small = open_images([data.getvalue()], max_pixels=2_000)[0]
    found = result('{"bbox_2d": [250, 250, 750, 750], "label": "x"}', images=(small,)).annotated
    assert found is not None
    assert found.size == (600, 300)
    assert found.getpixel((150, 150)) != (255, 255, 255)
    assert found.getpixel((300, 150)) == (255, 255, 255)
    assert small.pixels.getcolors() == [(small.size[0] * small.size[1], (255, 255, 255))]


def test_annotated_without_a_file_and_without_places() -> None:
    small = image((100, 50), max_pixels=200)
    drawn = result('{"bbox_2d": [0, 0, 0, 0]}', images=(small,)).annotated
    assert drawn is not None
    assert drawn.size == (100, 50)
    plain = result("Nothing.", images=(image((30, 20)),)).annotated
    assert plain is not None
    assert plain.getcolors() == [(600, (255, 255, 255))]


def test_annotated_is_the_first_image_with_a_place() -> None:
    images = (image(WIDE), image(TALL))
    drawn = result('{"bbox_2d": [0, 0, 9, 9], "image": 2}', images=images).annotated
    assert drawn is not None
    assert drawn.size == TALL


edges = st.floats(0, 300)


@given(
    st.lists(st.tuples(edges, edges, edges, edges), max_size=12),
    st.lists(st.tuples(st.floats(1, 120), st.floats(1, 20)), min_size=12, max_size=12),
)
@settings(max_examples=50, deadline=None)
def test_labels_do_not_hide_each_other_and_stay_in_the_image(
    boxes: list[tuple[float, ...]], sizes: list[tuple[float, float]]
) -> None:
    outlines = [Rectangle(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    spots = [each for each in label_positions(outlines, sizes[: len(outlines)], (300, 300)) if each]
    for at, spot in enumerate(spots):
        assert spot.left >= 0
        assert spot.top >= 0
        assert spot.right <= 300.001
        assert spot.bottom <= 300.001
        assert not any(spot.meets(other) for other in spots[:at])


def test_the_page_lists_each_dialect_with_its_architectures_and_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for dialect in DIALECTS:
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{dialect.name}` |")]
        assert all(name in row for name in dialect.architectures)
        assert row.endswith("| verified |" if dialect.verified else "| unverified |")
