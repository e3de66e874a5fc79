"""equijax: MD steps of its compiled engine, and of ASE with its calculator."""

from __future__ import annotations

from typing import Any

import ase.io
import jax
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet
from serve import serve

import equijax
from equijax.md import MDSettings, Simulation
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.frozen import frozen
from equijax.potential.potential import Potential, count_parameters, parameter_shapes
from equijax.precision import precision


def potential(case: dict[str, Any]) -> Potential:
    """MACE in the form of its peers with random parameters and weak forces: the atoms move, but nothing collapses."""
    config = MACEConfig(
        hidden_irreps=case["hidden_irreps"],
        first_interaction="agnostic",
        isolated_atoms="learned",
        activation_norm="torch_e3nn",
    )
    elements = tuple(case["elements"])
    statistics = ModelStatistics(elements, case["edges"] / case["atoms"], scale=case["scale"])
    rng = np.random.Generator(np.random.Philox(0))
    with precision("float32"):
        shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Potential(config, statistics, dict.fromkeys(elements, 0.0), params)


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    model = potential(case)
    if case.get("form") == "frozen":
        model, _ = frozen(model)
    atoms = ase.io.read(case["structure"])
    facts = {"parameters": count_parameters(model.params)}
    if case["engine"] == "ase":
        atoms.calc = equijax.EquijaxCalculator(model)
        integrator = VelocityVerlet(atoms, case["timestep_fs"] * units.fs)
        return lambda: integrator.run(case["steps"]), facts
    simulation = Simulation(model, atoms, MDSettings(timestep_fs=case["timestep_fs"], velocities="keep"))
    simulation.run_to([0])
    return lambda: simulation.run_to([simulation.step + case["steps"]]), facts


if __name__ == "__main__":
    serve(build)
