"""Calls on a background thread, awaited by the inference thread in slices."""

from __future__ import annotations

import ast
import importlib.util
import re
import threading
from functools import cache
from pathlib import Path

import pytest

from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.vision.backend import MAKES_ARRAYS
from mlx_magic.cancellation import Cancelled, CancelToken
from tests.generators import run_to_end


def test_background_call_runs_on_another_thread_and_is_awaited_in_slices() -> None:
    gate = threading.Event()

    def name() -> str:
        gate.wait(30)
        return threading.current_thread().name

    aside = BackgroundCall(name)
    steps = aside.result(CancelToken())
    try:
        for _ in range(3):
            next(steps)
            aside.check()
    finally:
        gate.set()
    assert run_to_end(steps).startswith("mlx-magic-background")


def test_background_error_is_raised_at_the_next_check() -> None:
    def fail() -> None:
        raise ValueError("no tokenizer")

    aside = BackgroundCall(fail)
    with pytest.raises(ValueError, match="no tokenizer"):
        run_to_end(aside.result(CancelToken()))
    with pytest.raises(ValueError, match="no tokenizer"):
        aside.check()


def test_cancel_does_not_wait_for_the_background_call() -> None:
    gate, token = threading.Event(), CancelToken()
    steps = BackgroundCall(gate.wait).result(token)
    try:
        next(steps)
        token.cancel()
        with pytest.raises(Cancelled):
            next(steps)
    finally:
        gate.set()


def test_unknown_code_runs_on_the_calling_thread() -> None:
    aside = BackgroundCall(threading.current_thread, here=True)
    assert run_to_end(aside.result(CancelToken())) is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        BackgroundCall(lambda: 1 / 0, here=True)


def root() -> Path:
    spec = importlib.util.find_spec("mlx_vlm")
    assert spec is not None
    return Path(str(spec.origin)).parent


def uses(tree: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(tree))


@cache
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    if not path.is_file():
        return {}
    body = ast.parse(path.read_text()).body
    return {one.name: one for one in body if isinstance(one, ast.FunctionDef)}


@cache
def callers(path: Path) -> set[str]:
    """Name what calls MLX where it is called: MLX, functions of the module, imported ones."""
    found = {"mx"}
    for one in ast.walk(ast.parse(path.read_text())):
        if isinstance(one, ast.ImportFrom) and one.level and one.module:
            folder = path.parents[one.level - 1]
            there = functions(folder.joinpath(*one.module.split(".")).with_suffix(".py"))
            names = {alias.name for alias in one.names}
            found |= {name for name in names if name in there and uses(there[name], {"mx"})}
    return found | {name for name, made in functions(path).items() if uses(made, found)}


def test_models_whose_processors_make_mlx_arrays_are_listed() -> None:
    """All other processors are created off the inference thread, to which MLX belongs."""
    makers = {"__init__", "__post_init__", "from_pretrained", "from_dict", "from_args_and_dict"}
    wanted = re.compile("Process|Extract|Tokenizer")
    paths = [path for path in root().glob("models/*/*.py") if wanted.search(path.read_text())]
    assert len(paths) > 100
    found = {
        path.parent.name
        for path in paths
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.ClassDef) and wanted.search(one.name)
        for method in one.body
        if isinstance(method, ast.FunctionDef) and method.name in makers
        if uses(method, callers(path))
    }
    assert found == MAKES_ARRAYS
    assert not any(
        uses(method, {"mx"})
        for one in ast.parse((root() / "tokenizer_utils.py").read_text()).body
        if isinstance(one, ast.ClassDef)
        for method in one.body
        if isinstance(method, ast.FunctionDef) and method.name in makers
    )
