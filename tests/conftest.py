"""Files stay together on one worker, so that their fixtures and compiled programs are made once."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="module", autouse=True)
def _collector_leaves_what_earlier_files_made() -> Iterator[None]:
    """Traced and compiled programs stay: millions of objects that every full collection would walk through."""
    yield
    gc.collect()
    gc.freeze()
