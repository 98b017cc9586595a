"""Boxes and points over the thumbnails of a result."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic import VisionResult
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.places.values import Box, Point
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.display.places.overlay import legend, summary, svg
from mlx_magic.notebook.display.render import bundle

SIZE = (400, 200)


def shown(items: list[dict[str, Any]], sizes: tuple[tuple[int, int], ...] = (SIZE,)) -> str:
    images = open_images([Image.new("RGB", size, "white") for size in sizes])
    result = VisionResult(
        json.dumps(items), "m", "stop", images=tuple(images), grounding=Grounding(scale=1000.0)
    )
    return bundle(result)["text/html"]


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(each) for each in re.findall("<svg.*?</svg>", html)]


def test_boxes_are_drawn_where_they_are() -> None:
    html = shown([{"bbox_2d": [250, 500, 500, 1000], "label": "cat"}])
    [drawing] = drawings(html)
    assert drawing.attrib["viewBox"] == "0 0 384 192"
    box = next(each for each in drawing if each.find("title") is not None)
    place = [float(box.attrib[key]) for key in ("x", "y", "width", "height")]
    assert place == pytest.approx([96, 96, 96, 96])
    assert [each.text for each in drawing.iter("text")] == ["cat"]


def test_equal_labels_have_one_color_and_different_ones_differ() -> None:
    boxes = [Box(0, 0, 9, 9, "a"), Box(20, 20, 29, 29, "b"), Box(40, 40, 49, 49, "a")]
    [drawing] = drawings(svg(boxes, (50, 50), (384, 384)))
    strokes = [each.attrib["stroke"] for each in drawing if each.find("title") is not None]
    assert strokes[0] == strokes[2] != strokes[1]
    assert "&times; 2" in legend(boxes)


def test_clipped_and_inverted_boxes_are_dashed() -> None:
    boxes = [Box(0, 0, 9, 9), Box(0, 0, 9, 9, clipped=True), Box(0, 0, 9, 9, inverted=True)]
    [drawing] = drawings(svg(boxes, (50, 50), (384, 384)))
    drawn = [each for each in drawing if each.find("title") is not None]
    assert ["stroke-dasharray" in each.attrib for each in drawn] == [False, True, True]
    assert "dashed: 2" in legend(boxes)


def test_each_image_has_its_own_places() -> None:
    items = [{"bbox_2d": [0, 0, 500, 500], "label": "cat", "image": 2}]
    html = shown(items, (SIZE, SIZE))
    assert len(drawings(html)) == 1
    assert html.index("<svg") > html.rindex("<img")


def test_an_answer_without_places_has_a_plain_thumbnail() -> None:
    assert "<svg" not in shown([])


def test_points_are_drawn_and_counted() -> None:
    places: list[Box | Point] = [Point(1, 1, "nose"), Box(0, 0, 9, 9, "head")]
    [drawing] = drawings(svg(places, (50, 50), (384, 384)))
    assert len(list(drawing.iter("circle"))) == 1
    assert summary(places) == "1 box and 1 point: nose, head"


@given(st.lists(st.text(max_size=60), max_size=5))
@settings(max_examples=60, deadline=None)
def test_labels_are_never_markup(labels: list[str]) -> None:
    hostile = ["</text><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', *labels]
    html = shown([{"bbox_2d": [0, 0, 900, 900], "label": label} for label in hostile])
    for drawing in drawings(html):
        assert {each.tag for each in drawing.iter()} <= {"svg", "rect", "title", "text"}
    figure = html.partition("</figure>")[0]
    assert re.findall(r"<(\w+)", figure.lower()).count("img") == 1
    assert "<script" not in html


def test_many_places_are_drawn_up_to_a_limit() -> None:
    boxes = [Box(at % 50, at // 50, at % 50 + 1, at // 50 + 1, f"l{at}") for at in range(2_000)]
    [drawing] = drawings(svg(boxes, (50, 50), (384, 384)))
    assert len(list(drawing.iter("title"))) == 500
    assert "the first 500 of 2000 are drawn" in legend(boxes)
