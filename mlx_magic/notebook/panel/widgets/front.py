"""The two anywidgets of a panel: their state and messages."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

from mlx_magic.formatting import shown
from mlx_magic.notebook.display import formulas

_SCRIPTS = (
    *("parts", "frame", "camera", "thumbnails", "tray"),
    *("turns", "conversation", "answer", "actions", "cells", "panel"),
)
_STYLES = ("controls", "panel")

_log = logging.getLogger(__name__)


def _joined(names: tuple[str, ...], ending: str) -> str:
    folder = Path(__file__).parents[1] / "static"
    return "\n".join((folder / f"{name}.{ending}").read_text("utf-8") for name in names)


_CLASSES = f'const UNSET = "{formulas.UNSET}", SET = ".{formulas.SET_CLASSES[0]}";'
SCRIPT = f"{_CLASSES}\n{_joined(_SCRIPTS, 'js')}"
"""One JavaScript module for both widgets, as anywidget loads a single file."""
STYLE = _joined(_STYLES, "css")


class TrayEvents(Protocol):
    """Events of an `ImageTray`; called on the kernel's message thread."""

    def file(self, id: str, name: str, size: int, piece: int, pieces: int, data: bytes) -> None:
        """Receive a piece of a file: number `piece` of `pieces`, `size` bytes in all."""

    def remove(self, id: str) -> None:
        """Remove an image, or cancel one that is being opened."""

    def order(self, ids: list[str]) -> None:
        """Reorder the images."""

    def clear(self) -> None:
        """Remove all images."""

    def dismiss(self, id: str) -> None:
        """Dismiss a problem."""

    def run(self, prompt: str) -> None:
        """Ask, with the prompt of the page."""

    def cancel(self) -> None:
        """Cancel everything that this panel started."""


class ConversationEvents(Protocol):
    """Events of a `ConversationView`; called on the kernel's message thread."""

    def cancel(self, turn: str, index: int) -> None:
        """Cancel one of several answers."""

    def edit(self, turn: str) -> None:
        """Put a turn's question back into the controls."""

    def save(self, turn: str, index: int, name: str, replace: bool) -> None:
        """Save an answer's result as a variable."""

    def export(self, format: str) -> None:
        """Send the conversation as a file: "markdown" or "json"."""

    def cell_used(self, turn: str, index: int) -> None:
        """Note that an answer was copied or inserted as a cell."""

    def refresh(self, turn: str) -> None:
        """Send a turn again, or that it was dropped: the page missed a message."""


class ImageTray(anywidget.AnyWidget):
    """Drop zone, file chooser, camera and thumbnails; also the panel's keys.

    Parameters
    ----------
    events : TrayEvents
    **state : Any
        Initial values of the traits.

    Attributes
    ----------
    images : list of dict
        ``id``, ``name``, ``width`` and ``height`` (pixels), ``note``, and ``thumb``, a data
        URI of at most 128 pixels a side.
    opening : list of dict
        ``id``, ``name`` and ``fraction`` (0 to 1) of files that are received or decoded.
    problems : list of dict
        ``id`` and ``text`` (one line).
    why_not : str
        Why no images can be added now; ``""`` if they can.
    max_bytes, max_images : int
        Limits of a file and of the tray.
    """

    _esm = SCRIPT
    _css = STYLE

    role = traitlets.Unicode("tray", read_only=True).tag(sync=True)
    images = traitlets.List(traitlets.Dict()).tag(sync=True)
    opening = traitlets.List(traitlets.Dict()).tag(sync=True)
    problems = traitlets.List(traitlets.Dict()).tag(sync=True)
    why_not = traitlets.Unicode("").tag(sync=True)
    max_bytes = traitlets.Int(50_000_000).tag(sync=True)
    max_images = traitlets.Int(32).tag(sync=True)

    def __init__(self, events: TrayEvents, **state: Any) -> None:
        super().__init__(**state)
        _listen(self, events, _TRAY_MESSAGES)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Ignore state from the page: it sends messages instead."""


class ConversationView(anywidget.AnyWidget):
    """The turns of a panel; updated by small messages, not by its trait.

    Parameters
    ----------
    events : ConversationEvents
    turns : callable
        Returns the current turns; called when a page requests the whole state.

    Attributes
    ----------
    turns : list of dict
        Stays empty in the kernel: `get_state` returns the current turns.
    """

    _esm = SCRIPT
    _css = STYLE

    role = traitlets.Unicode("conversation", read_only=True).tag(sync=True)
    turns = traitlets.List(traitlets.Dict(), read_only=True).tag(sync=True)

    def __init__(
        self, events: ConversationEvents, turns: Callable[[], list[dict[str, Any]]]
    ) -> None:
        self._current_turns = turns
        super().__init__()
        _listen(self, events, _CONVERSATION_MESSAGES)

    def get_state(
        self, key: str | Iterable[str] | None = None, drop_defaults: bool = False
    ) -> dict[str, Any]:
        """Return the state for a new page, with the current turns.

        Parameters
        ----------
        key : str or iterable of str, optional
            One or several traits; all of them by default.
        drop_defaults : bool
            Leave out default values.
        """
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if key is None or "turns" in state:
            state["turns"] = self._current_turns()
        return state

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Ignore state from the page: it sends messages instead."""

    def turn(self, turn: Mapping[str, Any]) -> None:
        """Add a turn, or replace the one with the same id."""
        self.send({"type": "turn", "turn": turn})

    def drop(self, ids: Sequence[str]) -> None:
        """Remove turns."""
        self.send({"type": "drop", "ids": list(ids)})

    def answer(self, turn: str, index: int, answer: Mapping[str, Any]) -> None:
        """Replace an answer."""
        self.send({"type": "answer", "turn": turn, "index": index, "answer": answer})

    def delta(self, turn: str, index: int, before: int, text: str, status: str = "") -> None:
        """Append plain text to the tail, which has `before` characters; may set the status."""
        message = {"type": "d", "t": turn, "i": index, "n": before, "x": text}
        self.send({**message, "s": status} if status else message)

    def blocks(self, turn: str, index: int, before: int, html: list[str], tail: str) -> None:
        """Append sanitized blocks to the `before` existing ones; replace the tail."""
        self.send({"type": "b", "t": turn, "i": index, "k": before, "h": html, "x": tail})

    def status(self, turn: str, index: int, status: str, fraction: float) -> None:
        """Show a phase and its progress, from 0 to 1 (-1: unknown)."""
        self.send({"type": "s", "t": turn, "i": index, "s": status, "f": round(fraction, 3)})

    def thoughts(self, turn: str, index: int, before: int, text: str) -> None:
        """Append plain text to the thoughts, which have `before` characters."""
        self.send({"type": "r", "t": turn, "i": index, "n": before, "x": text})

    def download(self, name: str, mime: str, text: str) -> None:
        """Download a file in the browser that requested it."""
        self.send({"type": "download", "name": name, "mime": mime, "text": text})

    def said(self, turn: str, index: int, *, ok: bool, text: str, ask: str = "") -> None:
        """Show the outcome of an action; `ask="replace"` offers to replace the variable.

        Parameters
        ----------
        turn : str
            Id; ``""`` for the whole conversation.
        index : int
            Index of the answer in its turn.
        ok : bool
            Whether the action succeeded.
        text : str
            One line.
        ask : {"", "replace"}
        """
        self.send(
            {"type": "said", "turn": turn, "index": index, "ok": ok, "text": text, "ask": ask}
        )


_LONGEST_ID = 200
_MOST_IDS = 1_000
_MOST_COUNT = 2**53  # the largest exact integer of JavaScript


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_brief(value)} is not a string")
    return value


def _id(value: object) -> str:
    if len(text := _text(value)) > _LONGEST_ID:
        raise ValueError(f"{_brief(value)} is not an id")
    return text


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_COUNT:
        raise ValueError(f"{_brief(value)} is not a count")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_brief(value)} is neither true nor false")
    return value


def _ids(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > _MOST_IDS:
        raise ValueError(f"{_brief(value)} is not a list of ids")
    return [_id(item) for item in value]


def _format(value: object) -> str:
    if value not in ("markdown", "json"):
        raise ValueError(f"{_brief(value)} is not a format")
    return str(value)


def _brief(value: object) -> str:
    """Return a short repr on one line, also of very long or deep values."""
    if isinstance(value, int) and abs(value) > 10**50:
        return "a very large number"  # Python refuses to format thousands of digits
    return shown(reprlib.repr(value))


_Fields = Mapping[str, Callable[[object], Any]]

_ANSWER: _Fields = {"turn": _id, "index": _count}
_TRAY_MESSAGES: Mapping[str, _Fields] = {
    "file": {"id": _id, "name": _text, "size": _count, "piece": _count, "pieces": _count},
    "remove": {"id": _id},
    "order": {"ids": _ids},
    "clear": {},
    "dismiss": {"id": _id},
    "run": {"prompt": _text},
    "cancel": {},
}
_CONVERSATION_MESSAGES: Mapping[str, _Fields] = {
    "cancel": _ANSWER,
    "edit": {"turn": _id},
    "save": {**_ANSWER, "name": _text, "replace": _flag},
    "export": {"format": _format},
    "cell_used": _ANSWER,
    "refresh": {"turn": _id},
}


def _listen(widget: anywidget.AnyWidget, events: object, messages: Mapping[str, _Fields]) -> None:
    """Dispatch each message of the page to the method of `events`, with checked values."""

    def receive(_: object, content: Any, buffers: Sequence[Any]) -> None:
        try:
            name, values = _understand(content, buffers or (), messages)
        except ValueError as error:
            # Sent only by another version of the JavaScript module, or by a script.
            _log.warning("A message to the panel was not understood: %s", error)
            return
        getattr(events, name)(**values)

    widget.on_msg(receive)


def _understand(
    content: Any, buffers: Sequence[Any], messages: Mapping[str, _Fields]
) -> tuple[str, dict[str, Any]]:
    """Return a message's type and its checked values, or raise ValueError."""
    name = content.get("type") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in messages:
        raise ValueError(f"{_brief(name)} is not a message type")
    fields = messages[name]
    missing = [key for key in fields if key not in content]
    if missing:
        raise ValueError(f"{name} has no {missing[0]}")
    values = {key: check(content[key]) for key, check in fields.items()}
    if name == "file":
        whole = len(buffers) == 1 and isinstance(buffers[0], (bytes, bytearray, memoryview))
        if not whole or not values["piece"] < values["pieces"]:
            raise ValueError("a piece of a file is incomplete")
        values["data"] = bytes(buffers[0])
    return name, values
