"""What is done beside the inference thread: on another one, waited for in slices."""

from __future__ import annotations

import ast
import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.inference.backends.aside import Aside
from mlx_magic.inference.cancel import Cancelled, CancelToken


def value_of(steps: Any) -> Any:
    """Go on to the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_it_runs_on_another_thread_and_is_waited_for_in_slices() -> None:
    gate = threading.Event()

    def name() -> str:
        gate.wait(30)
        return threading.current_thread().name

    aside = Aside(name)
    steps = aside.result(CancelToken())
    for _ in range(3):
        next(steps)
        aside.check()
    gate.set()
    assert value_of(steps).startswith("mlx-magic-aside")


def test_an_error_comes_at_the_next_look() -> None:
    def fail() -> None:
        raise ValueError("no tokenizer")

    aside = Aside(fail)
    with pytest.raises(ValueError, match="no tokenizer"):
        value_of(aside.result(CancelToken()))
    with pytest.raises(ValueError, match="no tokenizer"):
        aside.check()


def test_a_cancel_does_not_wait_for_it() -> None:
    gate, token = threading.Event(), CancelToken()
    steps = Aside(gate.wait).result(token)
    next(steps)
    token.cancel()
    with pytest.raises(Cancelled):
        next(steps)
    gate.set()


def test_code_that_nobody_knows_stays_on_this_thread() -> None:
    aside = Aside(threading.current_thread, here=True)
    assert value_of(aside.result(CancelToken())) is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        Aside(lambda: 1 / 0, here=True)


def makers_of_arrays() -> list[str]:
    """Name what of mlx-vlm's processors and tokenizers calls MLX when it is made."""
    spec = importlib.util.find_spec("mlx_vlm")
    assert spec is not None
    root = Path(str(spec.origin)).parent
    paths = [*root.glob("models/*/*process*.py"), *root.glob("models/*/*token*.py")]
    paths += [root / "tokenizer_utils.py"]
    assert len(paths) > 50
    makers = {"__init__", "__post_init__", "from_pretrained", "from_dict", "from_args_and_dict"}
    return [
        f"{path.name}: {one.name}.{method.name}"
        for path in paths
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.ClassDef)
        for method in one.body
        if isinstance(method, ast.FunctionDef) and method.name in makers
        for part in ast.walk(method)
        if isinstance(part, ast.Name) and part.id == "mx"
    ]


def test_no_processor_of_mlx_vlm_makes_arrays_when_it_is_made() -> None:
    """They are made beside the inference thread, which MLX belongs to."""
    assert makers_of_arrays() == []
