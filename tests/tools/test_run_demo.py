"""What `make demo` writes to the terminal, given the messages of a kernel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.run_demo import WIDGET_VIEW, Transcript, rest_of

STATUS = '<span role="status" style="color:gray">writing · 3 tokens</span>'


def view(text: str) -> str:
    return f'<div style="white-space:pre-wrap">{text}</div>'


def update(value: str) -> tuple[str, dict[str, Any]]:
    return "comm_msg", {"data": {"method": "update", "state": {"value": value}}}


def opened(value: str) -> tuple[str, dict[str, Any]]:
    return "comm_open", {"data": {"state": {"_model_name": "HTMLModel", "value": value}}}


def result(text: str) -> tuple[str, dict[str, Any]]:
    return "display_data", {"data": {"text/plain": text, "text/html": "<b>never shown</b>"}}


def written(capsys: pytest.CaptureFixture[str], *messages: tuple[str, dict[str, Any]]) -> list[str]:
    """Return what each message added to the terminal."""
    transcript = Transcript()
    pieces = []
    for message in messages:
        transcript.message(*message)
        pieces.append(capsys.readouterr().out)
    return pieces


def test_streamed_text_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = written(
        capsys,
        opened(STATUS),
        update(view("The circle")),
        update(view("The circle is &lt;red&gt;")),
        result("The circle is <red>."),
    )
    assert pieces == ["", "The circle", " is <red>", ".\n"]


def test_finished_paragraph_continues_the_printed_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = written(
        capsys,
        update(view("One")),
        opened(view("One two.")),
        update(view("Three")),
        result("One two.\n\nThree four."),
    )
    assert "".join(pieces) == "One two.\n\nThree four.\n"


def test_result_that_differs_from_the_stream_is_printed_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = written(capsys, update(view('{"a":1}')), result("Not valid JSON: it ends too early"))
    assert pieces == ['{"a":1}', "\nNot valid JSON: it ends too early\n"]


def test_stdout_errors_and_values_are_printed_and_widgets_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = written(
        capsys,
        ("stream", {"name": "stdout", "text": "hello\n"}),
        ("display_data", {"data": {"text/plain": "VBox()", WIDGET_VIEW: {}}}),
        ("execute_result", {"data": {"text/plain": "2"}}),
        ("error", {"ename": "UsageError", "evalue": "No such file."}),
        ("status", {"execution_state": "idle"}),
    )
    assert pieces == ["hello\n", "", "2\n", "UsageError: No such file.\n", ""]


@given(st.text(), st.text())
def test_rest_of_a_text_follows_its_start(start: str, end: str) -> None:
    rest = rest_of(start + end, start)
    assert rest is not None
    assert (
        rest.strip() == end.strip() or rest.strip() == (start + end)[len(start.rstrip()) :].strip()
    )


def test_no_rest_if_the_start_differs() -> None:
    assert rest_of("The circle", "A circle") is None
    assert rest_of("The", "The circle") is None
