"""A request is refused before prefill, but only after caches were cleared."""

from __future__ import annotations

import pytest

from mlx_magic.backends.batching.admission import MemoryAdmission
from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import Memory
from mlx_magic.errors import MemoryBudgetError

pytestmark = pytest.mark.model  # asks mlx what it runs on

CONFIG = {"num_hidden_layers": 10, "num_attention_heads": 8, "hidden_size": 512}
TOKENS = {"prompt_tokens": 1_000, "image_tokens": 0, "max_tokens": 1_000}


class Device:
    def __init__(self, *, active: int, kept: int, limit: int) -> None:
        self.kept, self.active, self.limit = kept, active, limit
        self.forgot = 0

    def memory(self) -> Memory:
        return Memory(self.active + self.kept, 0, self.limit)

    def forget(self) -> None:
        self.forgot += 1
        self.kept = 0


def room(held: Device) -> MemoryAdmission:
    platform.start()
    return MemoryAdmission("smol", CONFIG, chunk=64, forget=held.forget, memory=held.memory)


def test_request_that_fits_is_admitted_without_clearing_caches() -> None:
    held = Device(active=1_000, kept=1_000, limit=10**9)
    room(held).require(**TOKENS)
    assert held.forgot == 0


def test_caches_are_cleared_before_a_request_is_refused() -> None:
    held = Device(active=0, kept=10**9, limit=10**9)
    room(held).require(**TOKENS)
    assert held.forgot == 1


def test_request_that_cannot_fit_is_refused_with_the_numbers() -> None:
    held = Device(active=990_000_000, kept=0, limit=10**9)
    with pytest.raises(MemoryBudgetError, match=r"smol would need 0\.\d+ GB .* 0\.01 GB are free"):
        room(held).require(**TOKENS)


def test_unknown_limit_refuses_nothing() -> None:
    room(Device(active=10**12, kept=0, limit=0)).require(**TOKENS)
