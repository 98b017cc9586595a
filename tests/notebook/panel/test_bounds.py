"""The memory of a panel is bounded, and everything refused is reported."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic.errors import ImageTooLargeError
from mlx_magic.images import opening as images_opening
from mlx_magic.images.decoding.decode import pixels_of
from mlx_magic.images.limits import MAX_IMAGES
from mlx_magic.notebook.panel.control import image_tray, question_images
from mlx_magic.notebook.panel.control.question_images import MOST_PROBLEMS, Opening, QuestionImages
from mlx_magic.notebook.panel.state import pixel_budget
from mlx_magic.notebook.panel.widgets import front
from mlx_magic.testing import ScriptedBackend
from tests.notebook.panel.conftest import DrivenPanel, png

COLOURS = [f"#{at:02x}8040" for at in range(0, 256, 3)]
PIXELS = 40 * 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three images of a question, and for five in all."""
    monkeypatch.setattr(pixel_budget, "MOST_READY", 3 * PIXELS)
    monkeypatch.setattr(pixel_budget, "MOST_HELD", 5 * PIXELS)


def names(driven: DrivenPanel) -> list[str]:
    return [image["name"] for image in driven.tray.images]


def problems(driven: DrivenPanel) -> list[str]:
    return [problem["text"] for problem in driven.tray.problems]


@pytest.mark.usefixtures("small")
def test_image_over_the_limit_is_reported_and_fits_after_another_is_removed(
    driven: DrivenPanel,
) -> None:
    for at in range(4):
        driven.upload(f"{at}.png", png(COLOURS[at]), key=f"u{at}")
    assert names(driven) == ["0.png", "1.png", "2.png"]
    (said,) = problems(driven)
    assert said.startswith("3.png was not added: ")
    assert "remove some first" in said
    driven.page("remove", id="u0")
    driven.upload("3.png", png(COLOURS[3]), key="again")
    assert names(driven) == ["1.png", "2.png", "3.png"]


@pytest.mark.usefixtures("small")
def test_file_that_cannot_fit_is_not_decoded(
    driven: DrivenPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = images_opening.open_images

    def open_images(value: Any, *, name: str, **options: Any) -> Any:
        opened.append(name)
        return real(value, name=name, **options)

    monkeypatch.setattr(images_opening, "open_images", open_images)
    driven.upload("large.png", png(size=(200, 200)), key="a")
    driven.upload("small.png", png(), key="b")
    assert opened == ["small.png"]
    assert names(driven) == ["small.png"]


@pytest.mark.usefixtures("small")
def test_images_of_the_notebook_count_toward_the_same_limit(driven: DrivenPanel) -> None:
    for at in range(4):
        image = Image.new("RGB", (40, 20), COLOURS[at])
        driven.panel._images.open(image, f"v{at}", f"v{at}")
        driven.opened()
    assert names(driven) == ["v0", "v1", "v2"]
    (said,) = problems(driven)
    assert said.startswith("v3 was not added: ")


@pytest.mark.usefixtures("small")
def test_repeated_image_is_stored_once(driven: DrivenPanel) -> None:
    for at in range(8):
        driven.upload("same.png", png(), key=f"u{at}")
        if len(driven.tray.images) == 2:
            driven.ask("What?")
            driven.finish()
    found = [p.image for turn in driven.panel.turns for p in turn.images]
    assert len(found) == 8
    assert len({id(image.pixels) for image in found}) == 1
    assert problems(driven) == []


@pytest.mark.usefixtures("small")
def test_images_of_earlier_turns_count_until_a_new_conversation(driven: DrivenPanel) -> None:
    colours = iter(COLOURS)
    for turn in range(2):
        for at in range(2):
            driven.upload(f"{turn}{at}.png", png(next(colours)), key=f"u{turn}{at}")
        driven.ask("What?")
        driven.finish()
    driven.upload("last.png", png(next(colours)), key="last")
    driven.upload("more.png", png(next(colours)), key="more")
    assert names(driven) == ["last.png"]
    (said,) = problems(driven)
    assert said.startswith("more.png was not added: with the earlier turns")
    assert "start a new conversation" in said
    # Nothing of before is lost, and taking a question back costs nothing.
    assert [len(turn.images) for turn in driven.panel.turns] == [2, 2]
    driven.page("edit", turn=driven.panel.turns[0].id)
    assert names(driven) == ["00.png", "01.png"]
    driven.click("Stop editing")
    assert names(driven) == ["last.png"]
    driven.click("New conversation")
    driven.upload("more.png", png(next(colours)), key="again")
    assert names(driven) == ["last.png", "more.png"]


@pytest.mark.usefixtures("small")
def test_requests_from_python_count_toward_the_same_limit(driven: DrivenPanel) -> None:
    for at in range(2):
        asked = [Image.new("RGB", (40, 20), COLOURS[2 * at + n]) for n in range(2)]
        assert driven.panel.ask("What?", asked) is not None
    with pytest.raises(ImageTooLargeError, match="start a new conversation"):
        driven.panel.ask("What?", [Image.new("RGB", (40, 20), c) for c in COLOURS[10:12]])
    assert len(driven.panel.turns) == 2


def test_tray_limit_covers_the_images_of_one_question() -> None:
    assert pixel_budget.MOST_READY >= 256_000_000
    assert pixel_budget.MOST_HELD >= 2 * pixel_budget.MOST_READY


def test_file_size_is_read_from_its_header() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (30, 20)).save(file, kind)
        assert pixels_of(file.getvalue()) == 600
    for nothing in (b"", b"hello", b"\x89PNG\r\n\x1a\n", png()[:20], b"II*\0" + b"\xff" * 40):
        assert pixels_of(nothing) == 0


HOLDING = """
import io, resource, sys, threading
from PIL import Image
from mlx_magic.notebook.panel.state import pixel_budget as held
from mlx_magic.notebook.panel.control.question_images import QuestionImages
side, limit = int(sys.argv[1]), int(sys.argv[2])
if limit:
    held.MOST_READY = limit
def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
files = []
for at in range(40):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (at, 0, 0)).save(file, "PNG", compress_level=1)
    files.append(file.getvalue())
images = QuestionImages(lambda: None)
before = peak()
for at, file in enumerate(files):
    images.open(file, f"{at}.png")
for thread in threading.enumerate():
    if thread.name == "mlx-magic-open":
        thread.join()
print(len(images.ready), len(images.problems), len(files[0]), peak() - before)
"""


def test_forty_decompression_bombs_stay_within_the_limit() -> None:
    # 40 images of 4 megapixels would take 640 MB.
    command = [sys.executable, "-c", HOLDING, "2000", "20000000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    ready, problems, _, held_bytes = map(int, done.stdout.split())
    assert ready == 5
    assert problems == MOST_PROBLEMS + 1
    assert held_bytes < 180_000_000


def test_number_of_problems_is_limited_and_dropped_ones_are_counted(driven: DrivenPanel) -> None:
    for at in range(MOST_PROBLEMS + 30):
        driven.page("file", id=f"u{at}", name=f"{at}.png", size=0, piece=0, pieces=1, data=b"")
    said = problems(driven)
    assert len(said) == MOST_PROBLEMS + 1
    assert said[0] == "… and 30 earlier problems."
    assert said[-1].startswith(f"{MOST_PROBLEMS + 29}.png ")
    driven.page("dismiss", id=driven.tray.problems[0]["id"])
    assert len(problems(driven)) == MOST_PROBLEMS
    driven.page("clear")
    assert problems(driven) == []


def test_names_and_problems_are_short_and_on_one_line(driven: DrivenPanel) -> None:
    name = "x\u202e\n" * 100_000
    driven.page("file", id="a", name=name, size=9, piece=0, pieces=2, data=b"abc")
    assert len(driven.tray.opening[0]["name"]) <= 80
    driven.page("file", id="a", name=name, size=9, piece=1, pieces=2, data=b"abcdef")
    driven.opened()
    assert all(len(text) <= 400 and text.isprintable() for text in problems(driven))
    assert problems(driven)


def test_stalled_upload_is_reported(driven: DrivenPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(driven.panel._tray._uploads, "_clock", lambda: now[0])
    half: dict[str, Any] = {"size": 9, "piece": 0, "pieces": 2, "data": b"abc"}
    driven.page("file", id="a", name="a.png", **half)
    now[0] = image_tray.PATIENCE + 1
    driven.page("file", id="b", name="b.png", **half)
    assert [opening["id"] for opening in driven.tray.opening] == ["b"]
    assert problems(driven) == ["a.png was not received completely: add it again."]


class Waiting(QuestionImages):
    """Opens nothing: what is to be opened stays where it waits."""

    def _open_queued(self) -> None:
        pass


def test_queue_of_files_to_open_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_images, "MOST_WAITING", 10_000)
    waiting = Waiting(lambda: None)
    for at in range(12):
        waiting.open(bytes(1_000), f"{at}.png", as_id=f"u{at}")
    assert len(waiting.opening) == 10
    assert "would wait to be opened" in waiting.problems["u11"]
    waiting.remove("u0")
    waiting.open(bytes(1_000), "more.png", as_id="more")
    assert "more" in {opening.id for opening in waiting.opening}
    waiting.clear()
    for at in range(MAX_IMAGES + 3):
        waiting.open(b"x", f"{at}.png", as_id=f"u{at}")
        waiting.announce(Opening(f"a{at}", "a.png"))
    assert len(waiting.opening) == MAX_IMAGES
    assert waiting.problems


def test_upload_with_a_reused_id_is_another_image(driven: DrivenPanel) -> None:
    driven.upload("a.png", png("red"), key="u")
    driven.upload("b.png", png("blue"), key="u")
    assert names(driven) == ["a.png", "b.png"]
    assert len({image["id"] for image in driven.tray.images}) == 2


numbers = st.integers(-3, 5) | st.sampled_from([2**31, 2**53, 10**400, 10**4_000]) | st.floats()
texts = st.sampled_from(["", "a", "b", "more", "p1", "t1", "x" * 10_000, "\x1b[2J"]) | st.text()
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
KINDS = sorted({*front._TRAY_MESSAGES, *front._CONVERSATION_MESSAGES} - {"run", "export"})
FIELDS = sorted(
    {
        key
        for messages in (front._TRAY_MESSAGES, front._CONVERSATION_MESSAGES)
        for fields in messages.values()
        for key in fields
    }
)
likely = st.fixed_dictionaries(
    {
        "type": st.sampled_from(KINDS),
        "id": texts,
        "ids": st.lists(texts, max_size=4),
        "name": texts,
        "size": numbers,
        "piece": numbers,
        "pieces": numbers,
        "turn": texts,
        "index": numbers,
        "replace": st.booleans(),
    }
)
messages = (
    values
    | st.dictionaries(st.sampled_from([*FIELDS, "type"]), values)
    | likely
    | st.builds(lambda one, other: {**one, **other}, likely, st.dictionaries(texts, values))
)
buffers = st.none() | st.lists(st.binary(max_size=5) | values, max_size=2)


def told(driven: DrivenPanel, content: Any, parts: Any) -> None:
    """Give a message to both receivers; nothing catches what they raise."""
    for view in (driven.tray, driven.panel._actions.view):
        for callback in view._msg_callbacks.callbacks:
            callback(view, content, parts)
    for callback in driven.form.word._msg_callbacks.callbacks[1:]:  # the first is the library's
        callback(driven.form.word, content, parts)


@settings(
    max_examples=int(os.environ.get("MLX_MAGIC_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(messages, buffers), min_size=1, max_size=12))
def test_any_page_message_neither_raises_nor_grows_the_panel(
    driven: DrivenPanel, shell: InteractiveShell, script: ScriptedBackend, sent: Any
) -> None:
    before = dict(shell.user_ns)
    for content, parts in sent:
        told(driven, content, parts)
    driven.opened()
    state = driven.tray.get_state()
    assert len(state["opening"]) <= MAX_IMAGES
    assert len(state["problems"]) <= MOST_PROBLEMS + 1
    assert len(state["images"]) <= MAX_IMAGES
    for item in [*state["opening"], *state["problems"]]:
        assert len(item["id"]) <= 200
        assert len(item.get("name", "")) <= 80
        assert len(item.get("text", "")) <= 400
    assert len(driven.hint) < 3_000
    assert driven.panel._tray._uploads.held <= 5 * MAX_IMAGES
    assert driven.panel.turns == ()
    assert dict(shell.user_ns) == before
    driven.sent.clear()


@pytest.mark.parametrize(
    "content",
    [
        {"type": "file", "id": "a", "name": "a", "size": 10**5_000, "piece": 0, "pieces": 1},
        {"type": "file", "id": "a" * 10**6, "name": "a", "size": 1, "piece": 0, "pieces": 1},
        {"type": "order", "ids": ["a"] * 10**6},
        {"type": "remove", "id": 10**5_000},
        {"type": "x" * 10**7},
        {"type": ["file"] * 10**6},
        eval("[" * 90 + "]" * 90),
    ],
    ids=lambda content: repr(content["type"])[:12] if isinstance(content, dict) else "deep",
)
def test_message_of_an_unknown_type_is_dropped_with_a_short_log_line(
    driven: DrivenPanel, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    told(driven, content, [b"a"])
    assert "was not understood" in caplog.text
    assert all(len(record.getMessage()) < 300 for record in caplog.records)
    assert driven.tray.problems == driven.tray.opening == []
