"""The order of the tests, and the BLAS they all use."""

from __future__ import annotations

import pytest

from mlx_magic.inference.backends import device

# Before any of them imports MLX: afterwards it would be too late, and forty times as slow.
device.prepare()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the browser for the end: while Playwright's loop runs, no other can."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
