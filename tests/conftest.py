"""Settings of all tests."""

import pytest
from hypothesis import settings

# the same examples in every run, and no verdict by the clock of a busy machine
settings.register_profile("scalablevit", derandomize=True, deadline=None)
settings.load_profile("scalablevit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: what starts a Ray head comes last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)
