"""Shared by all tests: what is long runs only in `make soak`."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MODEL_OPT_SOAK"):
        return
    skip = pytest.mark.skip(reason="long: make soak")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)
