"""The panel's two widgets without a browser: sent and received messages."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.notebook.panel.widgets import front
from mlx_magic.notebook.panel.widgets.front import (
    ConversationEvents,
    ConversationView,
    ImageTray,
    TrayEvents,
)

TURN = {"id": "t1", "number": 1, "prompt": "What?", "answers": []}
PIECE = {"type": "file", "id": "f", "name": "a.png", "size": 3, "piece": 0, "pieces": 1}


class Heard:
    """Keeps every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda **values: self.calls.append((name, values))


class Sent:
    """Keeps what a widget would send to the page."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[Any] = []
        monkeypatch.setattr(widget, "_send", lambda message, buffers=None: self._keep(message))

    def _keep(self, message: Any) -> None:
        assert message["method"] == "custom"
        self.messages.append(json.loads(json.dumps(message["content"])))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def tray(heard: Heard) -> Iterator[ImageTray]:
    tray = ImageTray(heard, max_images=3)
    yield tray
    tray.close()


@pytest.fixture
def turns() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def talk(heard: Heard, turns: list[dict[str, Any]]) -> Iterator[ConversationView]:
    talk = ConversationView(heard, lambda: list(turns))
    yield talk
    talk.close()


def hear(widget: Any, content: Any, *buffers: bytes) -> None:
    """Give a widget a message of the page, as ipywidgets does."""
    data = {"method": "custom", "content": content}
    widget._handle_msg({"content": {"data": data}, "buffers": [memoryview(b) for b in buffers]})


def test_widgets_name_their_kind(tray: ImageTray, talk: ConversationView) -> None:
    assert tray.get_state()["role"] == "tray"
    assert tray.get_state()["max_images"] == 3
    assert talk.get_state()["role"] == "conversation"


def test_both_widgets_use_one_self_contained_module(
    tray: ImageTray, talk: ConversationView
) -> None:
    state = tray.get_state()
    assert state["_esm"] == talk.get_state()["_esm"] == front.SCRIPT
    assert state["_css"] == talk.get_state()["_css"] == front.STYLE
    assert len(re.findall(r"^export ", front.SCRIPT, re.MULTILINE)) == 1
    assert not re.search(r"^import |\bimport\(|https?://", front.SCRIPT, re.MULTILINE)
    assert not re.search(r"@import|url\(", front.STYLE)


def test_every_source_is_bundled_and_names_are_declared_once() -> None:
    folder = Path(front.__file__).parents[1] / "static"
    for path in folder.iterdir():
        assert path.read_text("utf-8") in (front.SCRIPT if path.suffix == ".js" else front.STYLE)
    names = re.findall(r"^(?:async )?(?:function|class|const) (\w+)", front.SCRIPT, re.MULTILINE)
    assert len(names) == len(set(names)) > 30


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"type": "remove", "id": "a"}, {"id": "a"}),
        ({"type": "order", "ids": ["b", "a"]}, {"ids": ["b", "a"]}),
        ({"type": "clear"}, {}),
        ({"type": "dismiss", "id": "p"}, {"id": "p"}),
        ({"type": "run", "prompt": "What?"}, {"prompt": "What?"}),
        ({"type": "cancel", "more": 1}, {}),
    ],
)
def test_tray_messages_become_method_calls(
    tray: ImageTray, heard: Heard, content: dict[str, Any], values: dict[str, Any]
) -> None:
    hear(tray, content)
    assert heard.calls == [(content["type"], values)]


def test_upload_chunk_has_its_bytes(tray: ImageTray, heard: Heard) -> None:
    hear(tray, {**PIECE, "piece": 1, "pieces": 2}, b"abc")
    name, values = heard.calls.pop()
    assert name == "file"
    assert values.pop("data") == b"abc"
    assert values == {"id": "f", "name": "a.png", "size": 3, "piece": 1, "pieces": 2}


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"type": "cancel", "turn": "t", "index": 1}, {"turn": "t", "index": 1}),
        ({"type": "edit", "turn": "t"}, {"turn": "t"}),
        (
            {"type": "save", "turn": "t", "index": 0, "name": "x", "replace": False},
            {"turn": "t", "index": 0, "name": "x", "replace": False},
        ),
        ({"type": "export", "format": "json"}, {"format": "json"}),
        ({"type": "cell_used", "turn": "t", "index": 0}, {"turn": "t", "index": 0}),
        ({"type": "refresh", "turn": "t"}, {"turn": "t"}),
    ],
)
def test_conversation_messages_become_method_calls(
    talk: ConversationView, heard: Heard, content: dict[str, Any], values: dict[str, Any]
) -> None:
    hear(talk, content)
    assert heard.calls == [(content["type"], values)]


@pytest.mark.parametrize(
    ("messages", "events"),
    [
        (front._TRAY_MESSAGES, TrayEvents),
        (front._CONVERSATION_MESSAGES, ConversationEvents),
    ],
)
def test_every_message_has_a_method_and_every_method_a_message(messages: Any, events: Any) -> None:
    methods = {n: f for n, f in vars(events).items() if inspect.isfunction(f) and n[0] != "_"}
    assert set(methods) == set(messages)
    for name, method in methods.items():
        parameters = [p for p in inspect.signature(method).parameters if p not in ("self", "data")]
        assert parameters == list(messages[name])


@pytest.mark.parametrize(
    "content",
    [
        None,
        "cancel",
        {},
        {"type": ["run"]},
        {"type": "__class__"},
        {"type": "run"},
        {"type": "run", "prompt": 3},
        {"type": "order", "ids": "ab"},
        {"type": "order", "ids": ["a", None]},
        PIECE,  # without its bytes
        {**PIECE, "size": -1},
    ],
)
def test_invalid_message_is_logged_and_dropped(
    tray: ImageTray, heard: Heard, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    with caplog.at_level(logging.WARNING, front.__name__):
        hear(tray, content)
    assert heard.calls == []
    assert "was not understood" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"type": "cancel", "turn": "t", "index": True},
        {"type": "cancel", "turn": "t", "index": 0.5},
        {"type": "save", "turn": "t", "index": 0, "name": "x", "replace": 1},
        {"type": "export", "format": "exe"},
    ],
)
def test_values_of_the_wrong_type_are_dropped(
    talk: ConversationView, heard: Heard, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    hear(talk, content)
    assert heard.calls == []
    assert "was not understood" in caplog.text


@pytest.mark.parametrize("piece", [(2, 2), (5, 1), (0, 0)])
def test_chunk_beyond_the_file_is_dropped(
    tray: ImageTray, heard: Heard, piece: tuple[int, int]
) -> None:
    hear(tray, {**PIECE, "piece": piece[0], "pieces": piece[1]}, b"abc")
    assert heard.calls == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    kind=st.sampled_from(sorted(front._TRAY_MESSAGES)),
    fields=st.dictionaries(
        st.sampled_from(["id", "ids", "name", "size", "piece", "pieces", "prompt"]), _json
    ),
)
def test_any_message_is_read_without_error(kind: str, fields: dict[str, Any]) -> None:
    try:
        name, values = front._understand({**fields, "type": kind}, [b""], front._TRAY_MESSAGES)
    except ValueError:
        return
    assert name == kind
    assert set(values) - {"data"} == set(front._TRAY_MESSAGES[kind])


def test_new_page_gets_the_current_turns(
    talk: ConversationView, turns: list[dict[str, Any]]
) -> None:
    assert talk.get_state()["turns"] == []
    turns.append(TURN)
    assert talk.get_state()["turns"] == [TURN]
    assert talk.get_state("turns") == {"turns": [TURN]}
    assert talk.get_state(drop_defaults=True)["turns"] == [TURN]
    assert "turns" not in talk.get_state("role")
    assert talk.turns == [], "the kernel must not send all turns again for each change"


def test_messages_to_the_page(talk: ConversationView, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent(talk, monkeypatch)
    talk.turn(TURN)
    talk.drop(("t0", "t1"))
    talk.answer("t1", 0, {"model": "smol"})
    talk.delta("t1", 0, 5, "more")
    talk.delta("t1", 0, 9, " text", "writing")
    talk.blocks("t1", 1, 2, ["<p>a</p>"], "tail")
    talk.status("t1", 0, "loading", 1 / 3)
    talk.download("talk.md", "text/markdown", "# Talk")
    talk.said("t1", 0, ok=False, text="It is there.", ask="replace")
    assert sent.messages == [
        {"type": "turn", "turn": TURN},
        {"type": "drop", "ids": ["t0", "t1"]},
        {"type": "answer", "turn": "t1", "index": 0, "answer": {"model": "smol"}},
        {"type": "d", "t": "t1", "i": 0, "n": 5, "x": "more"},
        {"type": "d", "t": "t1", "i": 0, "n": 9, "x": " text", "s": "writing"},
        {"type": "b", "t": "t1", "i": 1, "k": 2, "h": ["<p>a</p>"], "x": "tail"},
        {"type": "s", "t": "t1", "i": 0, "s": "loading", "f": 0.333},
        {"type": "download", "name": "talk.md", "mime": "text/markdown", "text": "# Talk"},
        {
            **{"type": "said", "turn": "t1", "index": 0},
            **{"ok": False, "text": "It is there.", "ask": "replace"},
        },
    ]


def test_page_cannot_set_widget_state(tray: ImageTray, talk: ConversationView) -> None:
    """A list without ids would stop every later update of the tray."""
    for widget, state in ((tray, {"images": [{}], "max_bytes": -1}), (talk, {"turns": [{}]})):
        data: dict[str, Any] = {"method": "update", "state": state, "buffer_paths": []}
        widget._handle_msg({"content": {"data": data}, "buffers": []})
    assert tray.images == []
    assert tray.max_bytes > 0
    assert talk.turns == []
