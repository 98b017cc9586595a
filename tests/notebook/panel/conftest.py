"""A panel on a scripted session, brought up to date by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic import default_session
from mlx_magic.models.catalog.alias_file import AliasTarget
from mlx_magic.notebook.panel.panel import Panel
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints

WAIT = 10.0


class DrivenPanel:
    """A panel without its thread, and the user's actions."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.panel = Panel(ipython=shell)
        self.panel._updates.close()
        self.session = default_session.current()
        self.sent: list[dict[str, Any]] = []
        self.panel._actions.view.send = self._send
        self.form = self.panel._composer
        self.tray = self.panel._tray.view
        # Its list of the models on disk would arrive at any moment.
        for thread in threading.enumerate():
            if thread.name == "mlx-magic-disk":
                thread.join(WAIT)
        self.update()

    def _send(self, content: dict[str, Any], buffers: Any = None) -> None:
        self.sent.append(content)

    def update(self) -> bool:
        return self.panel._update()

    def button(self, description: str) -> widgets.Button:
        found = [
            w
            for w in walk(self.panel.box)
            if isinstance(w, widgets.Button) and w.description == description
        ]
        assert len(found) == 1, f"{len(found)} buttons {description!r}"
        return found[0]

    def click(self, description: str) -> None:
        button = self.button(description)
        assert not button.disabled, f"{description!r} is disabled: {button.tooltip}"
        button.click()
        self.update()

    def write(self, prompt: str) -> None:
        self.form.prompt.value = prompt
        self.update()

    def ask(self, prompt: str) -> None:
        self.write(prompt)
        self.click("Run")

    def finish(self) -> None:
        """Wait for every answer, and show it."""
        for turn in self.panel.turns:
            for answer in turn.answers:
                if answer.generation is not None:
                    answer.generation.future.exception(timeout=WAIT)
        self.update()

    def page(self, event: str, **fields: Any) -> None:
        """Send what the page sends; images and conversation share no message but cancel."""
        view = self.tray if event in TRAY else self.panel._actions.view
        buffers = [fields.pop("data")] if "data" in fields else []
        view._handle_custom_msg({"type": event, **fields}, buffers)
        self.update()

    def upload(self, name: str, data: bytes, key: str = "u1") -> None:
        self.page("file", id=key, name=name, size=len(data), piece=0, pieces=1, data=data)
        self.opened()

    def opened(self) -> None:
        """Wait until every image is open."""
        import threading

        for thread in threading.enumerate():
            if thread.name == "mlx-magic-open":
                thread.join(WAIT)
        self.update()

    def answers(self, turn: int = -1) -> list[dict[str, Any]]:
        state = self.panel._turns.state()[turn]["answers"]
        assert isinstance(state, list)
        return state

    @property
    def hint(self) -> str:
        return str(self.form.hint.value)

    @property
    def models(self) -> str:
        return "".join(w.value for w in walk(self.panel._models.section.box) if hasattr(w, "value"))


TRAY = ("file", "remove", "order", "clear", "dismiss", "run", "cancel_all")


def walk(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def png(colour: str = "red", size: tuple[int, int] = (40, 20)) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def driven(shell: InteractiveShell, script: ScriptedBackend) -> Iterator[DrivenPanel]:
    driven = DrivenPanel(shell)
    yield driven
    script.release()
    driven.panel.close()


@pytest.fixture
def add_model(tmp_path: Any, script: ScriptedBackend) -> Callable[..., str]:
    """Make a model that can be named by an alias."""

    def add(name: str, *, kind: str = "vision") -> str:
        make = checkpoints.good if kind == "vision" else checkpoints.good_text
        default_session.current().pool.give_alias(name, AliasTarget(str(make(tmp_path / name))))
        return name

    return add
