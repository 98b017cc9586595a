"""A small Jupyter client: what a front end does with a kernel, without the front end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.manager import KernelManager

DEADLINE = 10.0
"""Seconds after which a message that was waited for counts as lost."""

VIEW = "application/vnd.jupyter.widget-view+json"

Message = dict[str, Any]


@dataclass
class Cell:
    """One execute request and everything that came back for it, in order of arrival."""

    msg_id: str
    messages: list[Message] = field(default_factory=list)
    reply: dict[str, Any] | None = None

    @property
    def idle(self) -> bool:
        """Whether the kernel said that it is done with this request."""
        return any(
            message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
            for message in self.messages
        )

    @property
    def started(self) -> bool:
        """Whether the kernel has begun to run the code."""
        return bool(self._contents("execute_input"))

    @property
    def status(self) -> str:
        """``ok``, ``error`` or ``aborted``."""
        assert self.reply is not None, "the cell has no reply yet"
        return str(self.reply["status"])

    @property
    def error(self) -> str:
        """Name of the exception that the cell raised, or an empty string."""
        errors = self._contents("error")
        return str(errors[-1]["ename"]) if errors else ""

    @property
    def stdout(self) -> str:
        """What the cell printed."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """What the cell wrote to stderr, warnings among it."""
        return self._stream("stderr")

    @property
    def displayed(self) -> list[dict[str, Any]]:
        """MIME bundles of the cell: displays and the value of its last line."""
        kinds = ("display_data", "execute_result")
        return [m["content"]["data"] for m in self.messages if m["msg_type"] in kinds]

    @property
    def kept(self) -> list[dict[str, Any]]:
        """MIME bundles that a notebook file holds after the cell: displays less cleared ones."""
        kept: list[dict[str, Any]] = []
        clearing = False
        for message in self.messages:
            content = message["content"]
            if message["msg_type"] == "clear_output":
                clearing = bool(content["wait"])
                kept = kept if clearing else []
            elif message["msg_type"] in ("display_data", "execute_result"):
                kept = [content["data"]] if clearing else [*kept, content["data"]]
                clearing = False
        return kept

    @property
    def text(self) -> str:
        """All that a reader without widgets sees: prints and text/plain of the displays."""
        return self.stdout + "\n".join(str(data.get("text/plain", "")) for data in self.displayed)

    def summary(self) -> str:
        """What happened, for the message of a failed test."""
        status = "running" if self.reply is None else self.status
        kinds = [kind for m in self.messages if not (kind := m["msg_type"]).startswith("comm_")]
        errors = [content["evalue"] for content in self._contents("error")]
        return f"{status} {errors} {self.text!r} {self.stderr!r} {kinds}"

    def _contents(self, msg_type: str) -> list[dict[str, Any]]:
        return [m["content"] for m in self.messages if m["msg_type"] == msg_type]

    def _stream(self, name: str) -> str:
        return "".join(c["text"] for c in self._contents("stream") if c["name"] == name)


class Client:
    """A kernel of its own, and a client that holds the state of all its widgets.

    Parameters
    ----------
    folders : list of Path
        Put first on the kernel's import path: an ipykernel of another version, the project.
    home : Path
        Empty folder for the kernel's own files and its working directory.
    """

    def __init__(self, folders: list[Path], home: Path) -> None:
        self.cells: dict[str, Cell] = {}
        self.widgets: dict[str, dict[str, Any]] = {}
        self.comm_messages: list[Message] = []
        self.iopub: list[Message] = []
        self.control: dict[str, dict[str, Any]] = {}
        self._manager = KernelManager()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in folders),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._manager.start_kernel(env=environment, cwd=str(home))
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        self._poller = zmq.Poller()
        for channel in (self._client.iopub_channel, self._client.shell_channel):
            self._poller.register(channel.socket, zmq.POLLIN)
        self._poller.register(self._client.control_channel.socket, zmq.POLLIN)

    def close(self) -> None:
        """End the kernel."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    # running code

    def start(self, code: str) -> Cell:
        """Send a cell and go on at once."""
        msg_id = self._client.execute(code, allow_stdin=False)
        self.cells[msg_id] = Cell(msg_id)
        return self.cells[msg_id]

    def finish(self, cell: Cell, timeout: float = DEADLINE) -> Cell:
        """Wait until the kernel has answered the cell and has said that it is idle."""
        self.wait_for(lambda: cell.reply is not None and cell.idle, "the end of a cell", timeout)
        return cell

    def run(self, code: str, timeout: float = DEADLINE) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.start(code), timeout)

    def value(self, expression: str) -> str:
        """Return ``str`` of an expression in the kernel; fails the test if it raises."""
        cell = self.run(f"print({expression}, end='')")
        assert cell.status == "ok", cell.summary()
        return cell.stdout

    def interrupt(self) -> None:
        """Interrupt the kernel, as the square button does."""
        self._manager.interrupt_kernel()

    def in_flight(self) -> list[Cell]:
        """Cells that are not at their end."""
        return [cell for cell in self.cells.values() if cell.reply is None or not cell.idle]

    # widgets

    def wait_for_button(self, cell: Cell, description: str = "Cancel", *, seen: bool = True) -> str:
        """Return the comm id of a cell's open button of this name, once there is one.

        A person sees a button once it is displayed. Under ``%%capture`` it is not, but any
        client of the kernel can find it nevertheless: that is ``seen=False``.
        """

        def found() -> list[str]:
            shown = self._shown_widgets(cell) if seen else self.widgets
            return [
                comm_id
                for comm_id, state in self._widgets_of(cell)
                if state.get("_model_name") == "ButtonModel"
                and state["description"] == description
                and comm_id in shown
            ]

        self.wait_for(lambda: bool(found()), f"a {description} button")
        return found()[-1]

    def wait_for_words(self, cell: Cell, words: str, timeout: float = DEADLINE) -> None:
        """Wait until an open HTML widget of the cell shows these words."""

        def shown() -> bool:
            return any(words in str(s.get("value", "")) for _, s in self._widgets_of(cell))

        self.wait_for(shown, f"a widget that shows {words!r}", timeout)

    def _widgets_of(self, cell: Cell) -> list[tuple[str, dict[str, Any]]]:
        opened = [m["content"]["comm_id"] for m in cell.messages if m["msg_type"] == "comm_open"]
        return [(comm_id, self.widgets[comm_id]) for comm_id in opened if comm_id in self.widgets]

    def _shown_widgets(self, cell: Cell) -> set[str]:
        """Comm ids of the widgets that a cell displays and of all that is inside them."""
        todo = [data[VIEW]["model_id"] for data in cell.displayed if VIEW in data]
        shown: set[str] = set()
        while todo:
            comm_id = todo.pop()
            shown.add(comm_id)
            children = self.widgets.get(comm_id, {}).get("children", [])
            todo += [str(child).removeprefix("IPY_MODEL_") for child in children]
        return shown

    def click(self, comm_id: str, subshell_id: str | None = None) -> None:
        """Click a button; JupyterLab names a subshell, other front ends name none."""
        self.send_custom(comm_id, {"event": "click"}, subshell_id)

    def send_custom(
        self, comm_id: str, content: dict[str, Any], subshell_id: str | None = None
    ) -> None:
        """Send what a widget's view in the page sends."""
        self._send_comm(comm_id, {"method": "custom", "content": content}, subshell_id)

    def set_state(self, comm_id: str, subshell_id: str | None = None, **state: Any) -> None:
        """Change traits of a widget, as a person does at a control."""
        self.widgets[comm_id].update(state)
        data = {"method": "update", "state": state, "buffer_paths": []}
        self._send_comm(comm_id, data, subshell_id)

    def request_states(self, subshell_id: str | None = None) -> dict[str, dict[str, Any]]:
        """Ask for the states of all widgets, as a page does that is loaded again.

        ipywidgets goes through a plain dict of them, and answers nothing at all if another
        thread opens or closes a widget meanwhile. JupyterLab waits four seconds and then asks
        each widget; this asks again as soon as the kernel reports the error.

        Returns
        -------
        dict
            State of each widget, by comm id; `widgets` holds them from now on.
        """
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            answer = self._request_states_once(subshell_id)
            if answer is not None:
                return {key: dict(widget["state"]) for key, widget in answer.items()}
        raise AssertionError(f"widgets kept changing for {DEADLINE} s")

    def _request_states_once(self, subshell_id: str | None) -> dict[str, Any] | None:
        begin = len(self.iopub)
        comm_id = f"control-{begin}"
        content = {"comm_id": comm_id, "target_name": "jupyter.widget.control", "data": {}}
        self._send("comm_open", content, subshell_id, metadata={"version": "1.0.0"})
        asked = self._send_comm(comm_id, {"method": "request_states"}, subshell_id)

        def answers() -> list[dict[str, Any]]:
            return [
                m["content"]["data"]["states"]
                for m in self.iopub[begin:]
                if m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm_id
            ]

        def handled() -> bool:
            return any(
                m["parent_header"].get("msg_id") == asked
                and m["content"].get("execution_state") == "idle"
                for m in self.iopub[begin:]
            )

        self.wait_for(lambda: bool(answers()) or handled(), "the states of the widgets")
        self._send("comm_close", {"comm_id": comm_id, "data": {}}, subshell_id)
        if answers():
            return answers()[0]
        self.wait_for(
            lambda: any(
                "dictionary changed size during iteration" in m["content"]["text"]
                for m in self.iopub[begin:]
                if m["msg_type"] == "stream"
            ),
            "the states of the widgets, or why there are none,",
        )
        return None

    def round_trip(self) -> list[Message]:
        """Ask the kernel what it is; return what it published meanwhile, less its status."""
        begin = len(self.iopub)
        asked = Cell(self._send("kernel_info_request", {}))
        self.cells[asked.msg_id] = asked
        self.finish(asked)
        return [m for m in self.iopub[begin:] if m["parent_header"].get("msg_id") != asked.msg_id]

    def _send_comm(self, comm_id: str, data: dict[str, Any], subshell_id: str | None) -> str:
        return self._send("comm_msg", {"comm_id": comm_id, "data": data}, subshell_id)

    def _send(
        self,
        msg_type: str,
        content: dict[str, Any],
        subshell_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        message = self._client.session.msg(msg_type, content, metadata=metadata)
        if subshell_id is not None:
            message["header"]["subshell_id"] = subshell_id
        self._client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def new_subshell(self) -> str:
        """Open a subshell, as JupyterLab does for its widget messages; ipykernel 7 and later."""
        message = self._client.session.msg("create_subshell_request", {})
        self._client.control_channel.send(message)
        msg_id = message["header"]["msg_id"]
        self.wait_for(lambda: msg_id in self.control, "a subshell")
        return str(self.control[msg_id]["subshell_id"])

    # messages

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
        """Take in messages until the condition holds.

        Raises
        ------
        AssertionError
            If it does not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                recent = [cell.summary() for cell in list(self.cells.values())[-2:]]
                raise AssertionError(f"{what} did not come in {timeout} s; last cells: {recent}")
            self._take_in(min(left, 0.5))

    def _take_in(self, timeout: float) -> None:
        ready = dict(self._poller.poll(int(timeout * 1000)))
        if self._client.iopub_channel.socket in ready:
            self._on_iopub(self._client.get_iopub_msg(timeout=0))
        if self._client.shell_channel.socket in ready:
            message = self._client.get_shell_msg(timeout=0)
            if (cell := self.cells.get(message["parent_header"].get("msg_id"))) is not None:
                cell.reply = message["content"]
        if self._client.control_channel.socket in ready:
            message = self._client.get_control_msg(timeout=0)
            self.control[message["parent_header"]["msg_id"]] = message["content"]
        if not ready:
            assert self._manager.is_alive(), "the kernel has died"

    def _on_iopub(self, message: Message) -> None:
        self.iopub.append(message)
        cell = self.cells.get(message["parent_header"].get("msg_id"))
        if cell is not None:
            cell.messages.append(message)
        if message["msg_type"].startswith("comm_"):
            self.comm_messages.append(message)
            self._on_comm(message["msg_type"], message["content"])

    def _on_comm(self, msg_type: str, content: dict[str, Any]) -> None:
        comm_id, data = content["comm_id"], content.get("data", {})
        if msg_type == "comm_open" and "state" in data:
            self.widgets[comm_id] = dict(data["state"])
        elif msg_type == "comm_msg" and data.get("method") == "update":
            self.widgets.setdefault(comm_id, {}).update(data["state"])
        elif msg_type == "comm_close":
            self.widgets.pop(comm_id, None)
