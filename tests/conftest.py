"""The order of the files: the longest first, so that no worker waits for another one's at the end."""

from __future__ import annotations

import pytest

LONGEST = ("test_train_kills.py", "test_gloo.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
