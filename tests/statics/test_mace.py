"""The same with a real model, slow: MACE, and five hundred crystals at once."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.optimize import BFGS

from equijax import EquijaxCalculator
from equijax.graph.padding import PaddingPolicy
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.evaluator import Evaluator
from equijax.potential.potential import Potential, parameter_shapes
from equijax.statics import elasticity, lowest_modes, relax, vibrational_modes
from tests.statics.pair_model import pair_potential

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mace() -> Potential:
    """Small, with seeded weights and ZBL repulsion, so that minima exist."""
    config = MACEConfig(
        cutoff=4.0, hidden_irreps="4x0e+4x1o", lmax=2, correlation=2, num_bessel=4, radial_mlp=(8,), zbl=True
    )
    statistics = ModelStatistics(atomic_numbers=(1, 6, 8), avg_num_neighbors=6.0)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    return Potential(config, statistics, dict.fromkeys((1, 6, 8), 0.0), params, dtype="float64")


def test_mace_relaxes_to_the_minimum_of_ase(mace):
    first = relax(mace, molecule("CH3OH"), fmax=1e-4, max_steps=2000)
    assert first.converged, first.message
    start = first.atoms.copy()
    start.rattle(0.02, seed=1)
    found = relax(mace, start, fmax=1e-4)
    reference = start.copy()
    reference.calc = EquijaxCalculator(mace)
    optimizer = BFGS(reference, logfile=None)
    assert optimizer.run(1e-4, steps=500)
    assert found.atoms.get_potential_energy() == pytest.approx(reference.get_potential_energy(), abs=1e-6)
    assert found.steps <= 3 * optimizer.nsteps


def test_mace_vibrations_and_elastic_constants(mace):
    atoms = relax(mace, molecule("H2O"), fmax=1e-7, max_steps=2000).atoms
    whole = vibrational_modes(mace, atoms)
    assert whole.residual < 1e-4
    assert whole.asymmetry < 1e-9
    np.testing.assert_allclose(lowest_modes(mace, atoms, 1).energies, whole.energies[:1], atol=1e-8)
    crystal = relax(mace, bulk("C", "diamond", a=3.6), cell="full", fmax=1e-6, smax=1e-4, max_steps=2000)
    assert crystal.converged, crystal.message
    constants = elasticity(mace, crystal.atoms).relaxed
    np.testing.assert_allclose(constants, constants.T, atol=1e-8 * np.abs(constants).max())
    np.testing.assert_allclose(constants[0, 0], constants[1, 1], rtol=1e-4)


def test_five_hundred_varied_crystals_take_twelve_compilations():
    potential = pair_potential(0.4, kind="morse", cutoff=7.0, length=3.6, steepness=1.2)
    rng = np.random.default_rng(0)
    crystals = []
    for index in range(500):
        lattice = ("fcc", "bcc", "sc", "hcp")[index % 4]
        spacing = {"fcc": 5.1, "bcc": 4.1, "sc": 3.5, "hcp": 3.6}[lattice] * rng.uniform(0.92, 1.1)
        atoms: Atoms = bulk("Ar", lattice, a=spacing) * tuple(int(n) for n in rng.integers(1, 4, size=3))
        atoms.rattle(0.05, seed=index)
        if index % 7 == 0 and len(atoms) > 3:
            del atoms[0]
        crystals.append(atoms)
    evaluator = Evaluator(potential, "float64", PaddingPolicy())
    results = relax(potential, crystals, cell="full", fmax=0.01, smax=0.05, evaluator=evaluator)
    assert evaluator.compile_count <= 12
    assert sum(result.converged for result in results) >= 495, [r.message for r in results if not r.converged]
