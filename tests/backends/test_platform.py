"""Platform differences: prefill chunk size and available memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.device import platform as device_platform
from mlx_magic.engine.engine import Engine
from tests.cycles import searches_for_cycles

linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@pytest.mark.parametrize("nbytes", [0, 10**7, 540 * 10**6, 10**10])
def test_prefill_chunk_is_smaller_for_a_larger_model(nbytes: int) -> None:
    if device_platform.is_gpu():
        assert device_platform.prefill_chunk(nbytes) == device_platform.PREFILL_CHUNK_GPU
        return
    least, most = device_platform.PREFILL_CHUNKS_CPU
    assert least <= device_platform.prefill_chunk(nbytes) <= most
    assert device_platform.prefill_chunk(nbytes) >= device_platform.prefill_chunk(nbytes * 2 + 1)


@linux
def test_container_memory_limit_is_respected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = tmp_path / "memory.max"
    monkeypatch.setattr(device_platform, "CONTAINER_LIMITS", (tmp_path / "nowhere", said))
    monkeypatch.setitem(sys.modules, "mlx.core", None)

    def total(text: str) -> int:
        said.write_text(text)
        device_platform._container_limit.cache_clear()
        return device_platform.total_memory()

    machine = total("max\n")
    assert machine > 10**6
    assert total("1000000\n") == 10**6
    assert total("9223372036854771712\n") == machine
    device_platform._container_limit.cache_clear()


@linux
@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_mlx_cache_thrashing_check_is_off_unless_set_by_the_user(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    name, _ = device_platform.CUDA_CHECK
    # So that monkeypatch restores what is set below.
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    if before is not None:
        monkeypatch.setenv(name, before)
    monkeypatch.setattr(device_platform, "_has_cuda", lambda: True)
    device_platform._prepare()
    assert os.environ[name] == after


@pytest.mark.model
@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_cycle_collection_runs_only_if_memory_is_still_held(
    engine: Engine, in_a_cycle: bool
) -> None:
    def work() -> tuple[int, int]:
        import mlx.core as mx

        # What earlier tests left would be found by the search, and counted.
        gc.collect()
        held: dict[str, Any] = {"array": mx.zeros((256, 256))}
        mx.eval(held["array"])
        if in_a_cycle:
            held["self"] = held
        nbytes = held["array"].nbytes
        before = device_platform.memory().active
        with searches_for_cycles() as searches, device_platform.freeing(nbytes):
            del held
        return before - device_platform.memory().active - nbytes, len(searches)

    assert engine.call(work).result(30) == (0, int(in_a_cycle))


@linux
@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "3"}], ids=["default", "user's own"])
def test_arenas_of_malloc_are_limited_unless_the_user_has_set_their_number(
    own: dict[str, str],
) -> None:
    """Many threads allocate at once; malloc_info counts the arenas that this made."""
    code = """
import ctypes, sys, tempfile, threading
from mlx_magic.backends.device import platform
platform.limit_arenas()
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    sys.exit()
barrier = threading.Barrier(40)
def work():
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc(1000)
    barrier.wait(30)
threads = [threading.Thread(target=work) for _ in range(40)]
[each.start() for each in threads]
[each.join() for each in threads]
libc.fopen.restype = ctypes.c_void_p
path = tempfile.mktemp().encode()
file = ctypes.c_void_p(libc.fopen(path, b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(path).read().count("<heap nr"))
"""
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**clean, **own}, capture_output=True, text=True, timeout=100, check=True
    )
    if done.stdout:
        most = int(own.get("MALLOC_ARENA_MAX", max(2, os.cpu_count() or 1)))
        assert int(done.stdout) <= most
