"""The order of the tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the browser for the end: while Playwright's loop runs, no other can."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
