"""What a chat template puts around an answer: text before it, and the end of the turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_magic.cancellation import Cancelled

SAMPLE = "Yes"
"""An answer that is rendered to see what a template puts around it."""

TAIL = 200
"""Characters at the end of a prompt with which an answer is tokenized."""


@dataclass(frozen=True, slots=True)
class AnswerFrame:
    """The text around an answer in the conversation as its template renders it.

    Attributes
    ----------
    tail : str
        End of the prompt, with the mark that begins the model's turn.
    lead : str
        Between the prompt and the answer: a space, in templates such as ``Assistant: Yes``.
    after : str
        After the answer: the mark that ends the turn. Empty if the template does not show it.
    """

    tail: str
    lead: str = ""
    after: str = ""


def answer_frame(prompt: object, render: Callable[[list[dict[str, Any]]], object]) -> AnswerFrame:
    """Find out what a template puts around an answer.

    Parameters
    ----------
    prompt : object
        The rendered prompt; only a str can be compared.
    render : callable
        Takes further messages; renders the conversation with them, without the beginning of
        another turn.

    Raises
    ------
    Cancelled
    """
    if not isinstance(prompt, str):
        return AnswerFrame("")
    try:
        whole = render([{"role": "assistant", "content": SAMPLE}])
    except Cancelled:
        raise
    except Exception:
        # A template that refuses a last turn of the model: an answer then follows the prompt.
        whole = None
    tail = prompt[-TAIL:]
    if not isinstance(whole, str):
        return AnswerFrame(tail)
    place = whole.rfind(SAMPLE)
    if place < 0:
        return AnswerFrame(tail)
    follows = whole.startswith(prompt) and place >= len(prompt)
    return AnswerFrame(
        tail, whole[len(prompt) : place] if follows else "", whole[place + len(SAMPLE) :]
    )
