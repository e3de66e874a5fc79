"""Runs of the toy model compile the same few functions again and again: share them through jax's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="package", autouse=True)
def compilation_cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Only for the tests below this directory; other processes are pointed at it by environment variables."""
    directory = tmp_path_factory.mktemp("compilation_cache")
    options = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
