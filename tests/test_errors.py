"""Errors that leave the public functions show the caller and the function, nothing below."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_magic
from mlx_magic.errors import (
    GenerationError,
    ImageNotFoundError,
    MlxMagicError,
    ModelNotFoundError,
    RequestError,
    ShortTraceback,
)
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.scripted_default import scripted_default


@pytest.fixture
def script() -> Iterator[ScriptedBackend]:
    with scripted_default("One two three.") as script:
        yield script


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "model"))


def raised(function: Callable[[], object]) -> BaseException:
    """Return what a function raises, with the traceback that its caller would see."""
    try:
        function()
    except BaseException as error:
        # Without the frame of this function.
        return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


def frames(error: BaseException) -> list[str]:
    """Return the functions of a traceback below the caller's, without the standard library's."""
    found = traceback.extract_tb(error.__traceback__)[1:]
    return [frame.name for frame in found if "contextlib" not in frame.filename]


def set_budget(value: Any) -> None:
    mlx_magic.pool.budget = value


def set_ttl(value: Any) -> None:
    mlx_magic.pool.idle_ttl = value


def hold(name: str) -> None:
    with mlx_magic.pool.lease(name):
        raise AssertionError


PUBLIC: dict[str, tuple[Callable[[str], object], str]] = {
    "an option": (lambda model: mlx_magic.ask("a", model=model, seed=-1), "ask"),
    "a file": (lambda model: mlx_magic.ask("a", "nowhere.png", model), "ask"),
    "a model": (lambda _: mlx_magic.ask("a", model="nothing-there"), "ask"),
    "stream": (lambda model: mlx_magic.stream(" ", model=model), "stream"),
    "next": (lambda _: next(mlx_magic.stream("a", model="nothing-there")), "__next__"),
    "result": (lambda _: mlx_magic.stream("a", model="nothing-there").result, "result"),
    "load": (lambda _: mlx_magic.pool.load("nothing-there"), "load"),
    "unload": (lambda _: mlx_magic.pool.unload("nothing-there"), "unload"),
    "pin": (lambda _: mlx_magic.pool.pin("nothing-there"), "pin"),
    "unpin": (lambda _: mlx_magic.pool.unpin("nothing-there"), "unpin"),
    "index": (lambda _: mlx_magic.pool["nothing-there"], "__getitem__"),
    "budget": (lambda _: set_budget("lots"), "budget"),
    "idle_ttl": (lambda _: set_ttl(-1), "idle_ttl"),
    "lease": (lambda _: hold("nothing-there"), "lease"),
}


CALLERS = {"<lambda>", "set_budget", "set_ttl", "hold"}


@pytest.mark.parametrize("name", PUBLIC)
def test_error_has_the_frames_of_the_caller_and_the_public_function(
    script: ScriptedBackend, model: str, name: str
) -> None:
    call, function = PUBLIC[name]
    error = raised(lambda: call(model))
    assert isinstance(error, MlxMagicError)
    assert [name for name in frames(error) if name not in CALLERS] == [function]
    assert error.__cause__ is None
    assert error.__context__ is None


def test_error_of_a_stream_stays_short_when_it_is_raised_again(
    script: ScriptedBackend, model: str
) -> None:
    stream = mlx_magic.stream("a", model="nothing-there")
    for _ in range(3):
        error = raised(lambda: stream.result)
        assert frames(error) == ["result"]


def test_failure_of_a_model_keeps_its_cause_without_frames(
    script: ScriptedBackend, model: str
) -> None:
    script.error = ZeroDivisionError("in the model")
    error = raised(lambda: mlx_magic.ask("a", model=model))
    assert isinstance(error, GenerationError)
    assert frames(error) == ["ask"]
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.__cause__.__traceback__ is None
    pickle.dumps(error.args)


def test_error_within_an_except_block_keeps_the_callers_own_error_as_context(
    script: ScriptedBackend, model: str
) -> None:
    def retry() -> None:
        try:
            raise KeyError("mine")
        except KeyError:
            mlx_magic.ask("a", "nowhere.png", model)

    error = raised(retry)
    assert isinstance(error, ImageNotFoundError)
    assert isinstance(error.__context__, KeyError)
    assert not error.__suppress_context__


def test_error_raised_while_it_is_handled_is_not_its_own_context(
    script: ScriptedBackend, model: str
) -> None:
    stream = mlx_magic.stream("a", model="nothing-there")

    def again() -> None:
        try:
            _ = stream.result
        except ModelNotFoundError:
            _ = stream.result

    assert raised(again).__context__ is None


def test_errors_of_the_block_of_a_lease_are_not_changed(
    script: ScriptedBackend, model: str
) -> None:
    def below() -> None:
        try:
            raise KeyError("why")
        except KeyError as cause:
            raise RequestError("mine") from cause

    def hold() -> None:
        with mlx_magic.pool.lease(model):
            below()

    error = raised(hold)
    assert frames(error) == ["below"]
    assert isinstance(error.__cause__, KeyError)


def test_other_exceptions_keep_their_traceback() -> None:
    def fails() -> None:
        with ShortTraceback():
            [].pop()
            raise AssertionError

    def guarded() -> None:
        with ShortTraceback():
            fails()

    assert frames(raised(guarded)) == ["fails"]


def test_interrupt_is_short() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def guarded() -> None:
        with ShortTraceback():
            interrupted()

    assert frames(raised(guarded)) == []


def test_whole_traceback_is_logged_at_debug_only(
    script: ScriptedBackend, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        raised(lambda: mlx_magic.ask("a", "nowhere.png", model))
    assert caplog.text == ""
    with caplog.at_level(logging.DEBUG, "mlx_magic"):
        raised(lambda: mlx_magic.ask("a", "nowhere.png", model))
    assert "find_files" in caplog.text
