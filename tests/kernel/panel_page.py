"""What a page does with a panel: hold its widgets, apply its messages, press its controls."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from .kernel_client import DEADLINE, VIEW, Cell, Client

Answer = dict[str, Any]
Turn = dict[str, Any]


class Conversation:
    """The turns as the page's own module holds them; see front.py for the messages.

    Attributes
    ----------
    turns : list of dict
    missed : list of str
        Turns that a message did not fit: the page asks for those again.
    """

    def __init__(self, turns: list[Turn]) -> None:
        self.turns = copy.deepcopy(turns)
        self.missed: list[str] = []

    def apply(self, message: dict[str, Any]) -> None:
        """Take in one custom message."""
        kind = message["type"]
        if kind == "turn":
            self._put(message["turn"])
        elif kind == "drop":
            self.turns = [turn for turn in self.turns if turn["id"] not in message["ids"]]
        elif kind == "answer":
            self._turn(message["turn"])["answers"][message["index"]] = message["answer"]
        elif kind in ("d", "b", "s"):
            self._grow(kind, message)

    def _grow(self, kind: str, message: dict[str, Any]) -> None:
        answer = self._turn(message["t"])["answers"][message["i"]]
        if kind == "d" and message["n"] == len(answer["tail"]):
            answer["tail"] += message["x"]
            answer["status"] = message.get("s", answer["status"])
        elif kind == "b" and message["k"] == len(answer["blocks"]):
            answer["blocks"] += message["h"]
            answer["tail"] = message["x"]
        elif kind == "s":
            answer.update(status=message["s"], fraction=message["f"])
        else:
            self.missed.append(message["t"])

    def _put(self, turn: Turn) -> None:
        places = [at for at, known in enumerate(self.turns) if known["id"] == turn["id"]]
        if places:
            self.turns[places[0]] = turn
        else:
            self.turns.append(turn)

    def _turn(self, key: str) -> Turn:
        return next(turn for turn in self.turns if turn["id"] == key)


class Page:
    """One panel on a page.

    Parameters
    ----------
    client : Client
    cell : Cell
        The one that has shown the panel.
    subshell_id : str, optional
        Where the page sends its messages.

    Attributes
    ----------
    refreshed : int
        How often a message did not fit what was there.
    """

    def __init__(self, client: Client, cell: Cell, subshell_id: str | None = None) -> None:
        self.client = client
        self.subshell_id = subshell_id
        self.root = next(str(data[VIEW]["model_id"]) for data in cell.displayed if VIEW in data)
        self.view = self._find(lambda state: state.get("role") == "conversation")
        self.prompt = self._find(lambda state: "mlxm-prompt" in state.get("_dom_classes", ()))
        self.model = self._find(lambda state: state.get("description") == "Model")
        self.max_tokens = self._find(lambda state: state.get("description") == "Max tokens")
        self.status = self._find(lambda state: "mlxm-status" in state.get("_dom_classes", ()))
        self.refreshed = 0
        self._read = 0
        self.conversation = Conversation(client.widgets[self.view]["turns"])

    def reload(self) -> None:
        """Lose all that the page holds, and get it from the kernel."""
        self.client.widgets.update(self.client.request_states(self.subshell_id))
        answers = [
            at
            for at, message in enumerate(self.client.comm_messages)
            if message["content"].get("data", {}).get("method") == "update_states"
        ]
        # What came before that was for a page that is gone.
        self._read = answers[-1] + 1
        self.conversation = Conversation(self.client.widgets[self.view]["turns"])

    # what a person does

    def write(self, prompt: str) -> None:
        """Put text into the prompt."""
        self.client.set_state(self.prompt, self.subshell_id, value=prompt)

    def press(self, description: str, of: str = "") -> None:
        """Click a button that can be clicked; of the model `of`, if one is named."""
        button = self.button(description, of)
        self.client.wait_for(
            lambda: not self.client.widgets[button]["disabled"], f"{description} that works"
        )
        self.client.click(button, self.subshell_id)

    def ask(self, prompt: str) -> None:
        """Write and run, as soon as the button says that it can be."""
        self.write(prompt)
        self.press("Run")

    def send(self, **content: object) -> None:
        """Send what the conversation's module sends."""
        self.client.send_custom(self.view, content, self.subshell_id)

    # what a person sees

    def button(self, description: str, of: str = "") -> str:
        """Return the comm id of the panel's button, or of the one in the row of a model."""
        rows = self._rows(of)
        outside = self._inside(self.root) - {key for row in self._rows("") for key in row}
        for inside in rows if of else [outside]:
            for key in inside:
                if self._is_button(key, description):
                    return key
        raise AssertionError(f"no button {description!r} {of}")

    def row(self, name: str) -> str:
        """Return what a model's row says, its button included; empty if there is none."""
        for row in self._rows(name):
            states = [self.client.widgets[key] for key in row]
            return " ".join(
                str(state.get("value", "")) + str(state.get("description", "")) for state in states
            )
        return ""

    @property
    def turns(self) -> list[Turn]:
        """The turns, with all that has come until now."""
        for message in self.messages(self._read):
            self.conversation.apply(message)
        self._read = len(self.client.comm_messages)
        for turn in self.conversation.missed:
            self.refreshed += 1
            self.send(type="refresh", turn=turn)
        self.conversation.missed = []
        return self.conversation.turns

    def messages(self, begin: int = 0) -> list[dict[str, Any]]:
        """Return the custom messages of the conversation."""
        return [
            message["content"]["data"]["content"]
            for message in self.client.comm_messages[begin:]
            if message["msg_type"] == "comm_msg"
            and message["content"]["comm_id"] == self.view
            and message["content"]["data"]["method"] == "custom"
        ]

    def answer(self, turn: int = -1, index: int = 0) -> Answer:
        """Return an answer as the page shows it."""
        answer: Answer = self.turns[turn]["answers"][index]
        return answer

    def text(self, turn: int = -1, index: int = 0) -> str:
        """Return all that is shown of an answer."""
        answer = self.answer(turn, index)
        return "".join(answer["blocks"]) + str(answer["tail"])

    # waiting

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
        """Take in messages until the condition holds."""
        self.client.wait_for(condition, what, timeout)

    def wait_for_turns(self, count: int) -> None:
        """Wait until there are so many turns."""
        self.wait_for(lambda: len(self.turns) == count, f"{count} turns")

    def wait_for_status(self, words: str) -> None:
        """Wait until the newest answer is in a phase that says so."""
        self.wait_for(
            lambda: bool(self.turns) and words in self.answer()["status"], f"the status {words!r}"
        )

    def wait_for_text(self, words: str) -> None:
        """Wait until the newest answer shows this."""
        self.wait_for(lambda: bool(self.turns) and words in self.text(), f"the text {words!r}")

    def wait_for_end(self, state: str = "done", timeout: float = DEADLINE) -> Answer:
        """Wait until the newest answer has ended; return it."""
        self.wait_for(
            lambda: bool(self.turns) and self.answer()["state"] != "running", "an end", timeout
        )
        assert self.answer()["state"] == state, self.answer()
        return self.answer()

    def wait_for_row(self, name: str, *words: str) -> None:
        """Wait until a model's row says all of this."""
        self.wait_for(lambda: all(word in self.row(name) for word in words), f"{name}: {words}")

    def wait_for_choice(self, label: str) -> None:
        """Wait until the menu of models offers this."""
        self.wait_for(
            lambda: label in self.client.widgets[self.model]["_options_labels"], f"{label!r}"
        )

    def _find(self, matches: Callable[[dict[str, Any]], bool]) -> str:
        (found,) = (key for key in self._inside(self.root) if matches(self.client.widgets[key]))
        return found

    def _rows(self, name: str) -> list[set[str]]:
        rows = [
            self._inside(key)
            for key in self._inside(self.root)
            if "mlxm-model" in self.client.widgets[key].get("_dom_classes", ())
        ]
        title = re.compile(rf"mlxm-model-title[^>]*>{re.escape(name)}<" if name else "")
        return [
            row
            for row in rows
            if any(title.search(str(self.client.widgets[key].get("value", ""))) for key in row)
        ]

    def _inside(self, root: str) -> set[str]:
        found: set[str] = set()
        todo = [root]
        while todo:
            key = todo.pop()
            # A row that has just been closed is still named by its list for a moment.
            if key in found or key not in self.client.widgets:
                continue
            found.add(key)
            children = self.client.widgets[key].get("children", [])
            todo += [str(child).removeprefix("IPY_MODEL_") for child in children]
        return found

    def _is_button(self, key: str, description: str) -> bool:
        state = self.client.widgets[key]
        return state.get("_model_name") == "ButtonModel" and state["description"] == description
