"""Long runs: drift of a MACE model within the gates, memory and compilations constant."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from equijax import EquijaxCalculator
from equijax.md import run_md
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.potential import Potential, parameter_shapes
from tests.md.ensemble_cases import argon, morse_argon
from tests.toy_model import toy_potential

pytestmark = pytest.mark.slow


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def random_mace() -> Potential:
    """A smooth untrained MACE with nuclear repulsion: what it predicts has no meaning, but it conserves energy."""
    config = MACEConfig(hidden_irreps="16x0e+16x1o", radial_mlp=(16, 16), zbl=True)
    statistics = ModelStatistics(atomic_numbers=(1, 6, 8), avg_num_neighbors=8.0, scale=0.3)
    rng = np.random.Generator(np.random.Philox(0))
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2, shapes)
    return Potential(config, statistics, dict.fromkeys((1, 6, 8), 0.0), params)


@pytest.mark.parametrize("engine", ["jit", "ase"])
@pytest.mark.parametrize(("dtype", "gate"), [("float32", 1e-2), ("float64", 1e-3)])
def test_nve_drift_of_mace(tmp_path, dtype, gate, engine):
    summary = run_md(
        random_mace(),
        molecule("CH3CH2OH"),
        output=tmp_path / "md.xyz",
        steps=4000,
        timestep_fs=0.5,
        temperature=300.0,
        dtype=dtype,
        engine=engine,
    )
    assert abs(summary["drift_mev_per_atom_per_ps"]) < gate
    assert summary["drift_ratio"] < 0.1
    assert summary["compile_count"] == 1


@pytest.mark.parametrize(("engine", "steps"), [("ase", 10_000), ("jit", 100_000)])
def test_memory_and_files_are_constant(tmp_path, engine, steps):
    potential = toy_potential(dtype="float64") if engine == "ase" else morse_argon()
    crystal = bulk("C", "diamond", a=4.0, cubic=True) if engine == "ase" else argon(3)
    samples = []

    def sample(record):
        if record["step"] % (steps // 10) == 0:
            gc.collect()
            samples.append((resident_mib(), len(os.listdir("/proc/self/fd")), len(jax.live_arrays())))

    summary = run_md(
        potential,
        crystal,
        output=tmp_path / "md.xyz",
        engine=engine,
        steps=steps,
        ensemble="langevin",
        temperature=300.0 if engine == "ase" else 60.0,
        timestep_fs=1.0 if engine == "ase" else 4.0,
        on_log=sample,
        write_every=100,
    )
    memory, files, arrays = (np.array(column) for column in zip(*samples, strict=True))
    assert memory[-1] - memory[2] < 5
    assert np.ptp(files[1:]) == 0
    assert np.ptp(arrays[1:]) == 0
    assert summary["compile_count"] == 1


def test_ten_thousand_molecules_through_one_calculator():
    calculator = EquijaxCalculator(toy_potential((1, 6, 8), cutoff=5.0))
    rng = np.random.Generator(np.random.Philox(0))
    grid = np.argwhere(np.ones((5, 5, 5))) * 1.6
    for _ in range(10_000):
        atoms = int(rng.integers(1, 65))
        positions = grid[rng.choice(125, size=atoms, replace=False)] + rng.normal(scale=0.1, size=(atoms, 3))
        frame = Atoms(rng.choice([1, 6, 8], size=atoms), positions=positions)
        frame.calc = calculator
        assert np.isfinite(frame.get_forces()).all()
    assert calculator.compile_count <= 8
