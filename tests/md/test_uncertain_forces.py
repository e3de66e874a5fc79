"""Runs stop at the first step whose forces are more uncertain than allowed, in either engine."""

from __future__ import annotations

import dataclasses
import re

import ase.io
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.md import run_md
from tests.toy_model import stretched, toy_potential

SETTINGS = {"steps": 60, "temperature": 900.0, "ensemble": "nve", "seed": 3, "write_every": 1, "log_every": 20}


@pytest.fixture(scope="module")
def committee():
    members = [toy_potential(dtype="float64", seed=seed) for seed in range(3)]
    params = {name: np.stack([member.params[name] for member in members]) for name in members[0].params}
    return dataclasses.replace(members[0], params=params, committee=3)


def largest(committee, frames):
    found = committee.predict(frames, ("forces_uncertainty",))
    return [float(np.sqrt(np.sum(result["forces_uncertainty"] ** 2, axis=1)).max()) for result in found]


def test_both_engines_stop_at_the_same_step(committee, tmp_path):
    start = stretched("H2O")
    limit = 1.18 * largest(committee, [start])[0]
    messages = {}
    for engine in ("ase", "jit"):
        with pytest.raises(EquijaxError, match=r"force uncertainty \(eV/Å\) of atom") as error:
            run_md(
                committee,
                start,
                output=tmp_path / f"{engine}.xyz",
                engine=engine,
                max_force_uncertainty=limit,
                **SETTINGS,
            )
        messages[engine] = str(error.value)
    steps = {engine: int(re.search(r"step (\d+)", text).group(1)) for engine, text in messages.items()}
    assert steps["ase"] == steps["jit"] > 1
    frames = ase.io.read(tmp_path / "ase.xyz", ":")
    uncertainties = largest(committee, frames)
    assert frames[-1].info["step"] == steps["ase"]
    assert uncertainties[-1] > limit >= max(uncertainties[:-1])


@pytest.mark.parametrize("engine", ["ase", "jit"])
def test_a_limit_needs_a_model_with_uncertainties(engine, tmp_path):
    potential = toy_potential()
    with pytest.raises(EquijaxError, match=r"max_force_uncertainty: this model has no .*fix: `equijax calibrate"):
        run_md(
            potential,
            stretched("H2O"),
            output=tmp_path / "md.xyz",
            engine=engine,
            max_force_uncertainty=1.0,
            **SETTINGS,
        )
    assert not list(tmp_path.iterdir())
