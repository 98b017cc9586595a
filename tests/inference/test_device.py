"""What differs by platform: chunks of a prompt, and the memory that there is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.inference.backends import device
from mlx_magic.inference.engine import Engine
from tests.cycles import searches_for_cycles

linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


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


@linux
@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_cuda_goes_on_after_many_lengths_unless_a_person_wants_to_be_told(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    name, _ = device.CUDA_CHECK
    # So that whatever is set below is taken back.
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    if before is not None:
        monkeypatch.setenv(name, before)
    monkeypatch.setattr(device, "_has_cuda", lambda: True)
    device._prepare()
    assert os.environ[name] == after


@pytest.mark.model
@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_cycles_are_looked_for_only_if_something_stays(engine: Engine, in_a_cycle: bool) -> None:
    def work() -> tuple[int, int]:
        import mlx.core as mx

        held: dict[str, Any] = {"array": mx.zeros((256, 256))}
        mx.eval(held["array"])
        if in_a_cycle:
            held["self"] = held
        nbytes = held["array"].nbytes
        before = device.memory().active
        with searches_for_cycles() as searches, device.freeing(nbytes):
            del held
        return before - device.memory().active - nbytes, len(searches)

    assert engine.call(work).result(30) == (0, int(in_a_cycle))
