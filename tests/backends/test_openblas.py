"""The BLAS of MLX's CPU backend on Linux: which one is loaded, and when none is."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mlx_magic.backends.device import openblas

linux = pytest.mark.skipif(sys.platform != "linux", reason="only MLX's CPU backend needs it")


def prepare_in_process(before: str = "", **environment: str) -> str:
    """Run `prepare` in a new process; return the path it loaded and its reason."""
    code = (
        f"{before}\nfrom mlx_magic.backends.device import platform as device\n"
        "blas = device.prepare()\nprint(blas.loaded, '|', blas.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@linux
def test_openblas_is_loaded_before_mlx() -> None:
    loaded, _, reason = prepare_in_process().partition(" | ")
    assert "openblas" in loaded
    assert reason == "loaded before mlx"


@linux
def test_environment_variable_turns_openblas_off() -> None:
    assert prepare_in_process(**{openblas.SWITCH: "0"}) == f"None | turned off by {openblas.SWITCH}"


@linux
def test_openblas_is_not_loaded_after_mlx() -> None:
    assert "mlx was imported before" in prepare_in_process("import mlx.core")


@linux
def test_library_without_sgemm_is_skipped() -> None:
    problem = openblas.check_product("libm.so.6")
    assert problem is not None
    assert "cblas_sgemm" in problem


def test_library_with_wrong_products_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(*arguments: object) -> None:
        """Leave the result as it was: all zeros."""

    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: SimpleNamespace(cblas_sgemm=zero))
    assert openblas.check_product("any") == "gives wrong products on this processor"


WATCHED = """
import ctypes, os
told, real = [], ctypes.CDLL
def opened(path, *args, **kwargs):
    if path and "openblas" in str(path):
        told.append(os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
    return real(path, *args, **kwargs)
ctypes.CDLL = opened
import atexit
atexit.register(lambda: print(set(told), os.environ.get("OPENBLAS_THREAD_TIMEOUT")))
"""


@linux
def test_busy_wait_of_idle_threads_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    name, ticks = openblas.BUSY_WAIT
    monkeypatch.delenv(name, raising=False)
    assert prepare_in_process(WATCHED).splitlines()[-1] == f"{ {ticks} } None"


@linux
def test_busy_wait_set_by_the_user_is_kept() -> None:
    name, _ = openblas.BUSY_WAIT
    assert prepare_in_process(WATCHED, **{name: "28"}).splitlines()[-1] == "{'28'} 28"
