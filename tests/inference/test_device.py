"""OpenBLAS before MLX: when it is loaded, when not, and that a wrong one is not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_magic.inference.backends import device

linux = pytest.mark.skipif(sys.platform != "linux", reason="only MLX's CPU backend needs it")


def prepared(before: str = "", **environment: str) -> str:
    """Run `prepare` in a new process; return the path it loaded and its reason."""
    code = (
        f"{before}\nfrom mlx_magic.inference.backends import device\n"
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
def test_it_is_loaded_before_mlx() -> None:
    loaded, _, reason = prepared().partition(" | ")
    assert "openblas" in loaded
    assert reason == "loaded before mlx"


@linux
def test_a_switch_turns_it_off() -> None:
    assert prepared(**{device.SWITCH: "0"}) == f"None | turned off by {device.SWITCH}"


@linux
def test_it_is_too_late_after_mlx() -> None:
    assert "mlx was imported before" in prepared("import mlx.core")


@linux
def test_a_library_without_the_function_is_passed_over() -> None:
    problem = device._check_product("libm.so.6")
    assert problem is not None
    assert "cblas_sgemm" in problem


def test_a_library_that_computes_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(*arguments: object) -> None:
        """Leave the result as it was: all zeros."""

    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: SimpleNamespace(cblas_sgemm=zero))
    assert device._check_product("any") == "gives wrong products on this processor"


@pytest.mark.parametrize("nbytes", [0, 10**7, 540 * 10**6, 10**10])
def test_a_prefill_chunk_is_smaller_for_a_larger_model(nbytes: int) -> None:
    if device.is_gpu():
        assert device.prefill_chunk(nbytes) == device.PREFILL_CHUNK_GPU
        return
    least, most = device.PREFILL_CHUNKS_CPU
    assert least <= device.prefill_chunk(nbytes) <= most
    assert device.prefill_chunk(nbytes) >= device.prefill_chunk(nbytes * 2 + 1)


@linux
def test_a_container_has_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CONTAINER_LIMITS", (tmp_path / "nowhere", said))
    monkeypatch.setitem(sys.modules, "mlx.core", None)

    def total(text: str) -> int:
        said.write_text(text)
        device._container_limit.cache_clear()
        return device.total_memory()

    machine = total("max\n")
    assert machine > 10**6
    assert total("1000000\n") == 10**6
    assert total("9223372036854771712\n") == machine
    device._container_limit.cache_clear()
