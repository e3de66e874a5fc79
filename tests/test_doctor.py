"""The canary passes on a default install, and fails where the compiler is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from equijax import doctor
from equijax.allocator import describe_allocator
from equijax.errors import EquijaxError

CANARY = "from equijax.doctor import run_canary; print([r.wrong > 0 for r in run_canary()])"


def test_canary_passes_with_the_flag_that_equijax_sets():
    results = doctor.run_canary()
    assert len(results) == 8
    assert [result for result in results if result.wrong] == []
    assert {result.rows for result in results} == {40_000, 20_000, 1_000}


def test_canary_sees_the_wrong_rows_when_the_user_turns_the_fusions_on():
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=+reduce"}
    output = subprocess.run(
        [sys.executable, "-c", CANARY], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "True" in output


def test_a_failed_canary_stops_the_work(monkeypatch):
    doctor.require_healthy_backend.cache_clear()
    wrong = [doctor.CanaryResult("row sum float32", 40_000, 7011)]
    monkeypatch.setattr(doctor, "run_canary", lambda: wrong)
    with pytest.raises(EquijaxError, match=r"wrong numbers .* row sum float32 has 7011 of 40000 rows wrong"):
        doctor.require_healthy_backend()


def test_description_has_versions_and_no_environment_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-token")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    facts = doctor.describe_installation()
    assert facts["jax"].startswith("0.10.1")
    assert "MALLOC_ARENA_MAX=1" in facts["allocator"]
    assert "secret-token" not in str(facts)
    assert describe_allocator() == facts["allocator"]


@pytest.mark.parametrize("words", [["doctor"], ["predict", "m", "s", "--output", "o.xyz"]])
def test_a_platform_that_is_not_there_is_one_line(words):
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "equijax.cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0 or "no such model" in done.stderr:
        pytest.skip("there is a GPU")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: JAX_PLATFORMS: asks for cuda, which JAX cannot start here; there is cpu; fix: "
    )
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_platform_that_nobody_knows_is_one_line(monkeypatch):
    import jax

    def unknown():
        raise RuntimeError("Unable to initialize backend 'quda'")

    monkeypatch.setenv("JAX_PLATFORMS", "quda")
    monkeypatch.setattr(jax, "devices", unknown)
    monkeypatch.setattr(doctor, "_platforms", lambda: "cpu, gpu")
    doctor.require_platform.cache_clear()
    with pytest.raises(
        EquijaxError, match=r"asks for quda, .*backend 'quda'.*; there is cpu, gpu; fix: JAX_PLATFORMS=cpu"
    ):
        doctor.require_platform()
