"""The cache of compiled programs: defaults, the user's settings, and that a process really reuses programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import equijax
from equijax.compilation_cache import enable_compilation_cache
from equijax.errors import EquijaxWarning

PROGRAM = """
from equijax.compilation_cache import enable_compilation_cache
enable_compilation_cache()
import jax, jax.numpy as jnp
from equijax.precision import jit
print(float(jit(lambda x: jnp.sum(jnp.sin(x) ** 2))(jnp.arange(4.0))))
"""


def run(home: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_defaults_leave_the_users_choice(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "0"}
    enable_compilation_cache(environment)
    assert Path(environment["JAX_COMPILATION_CACHE_DIR"]).parent == tmp_path / "equijax"
    assert environment["TF_CPP_MIN_LOG_LEVEL"] == "0"
    environment = {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}
    enable_compilation_cache(environment)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"


def test_programs_are_kept_and_damage_is_harmless(tmp_path):
    first = run(tmp_path)
    entries = sorted(tmp_path.glob("equijax/compiled-*/*-cache"))
    assert entries
    assert run(tmp_path) == first
    assert sorted(tmp_path.glob("equijax/compiled-*/*-cache")) == entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-10])
    assert run(tmp_path) == first


def test_too_late_is_said_and_not_half_done(monkeypatch):
    import jax  # noqa: F401

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with pytest.warns(EquijaxWarning, match="after jax was imported"):
        equijax.enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert run(tmp_path)
