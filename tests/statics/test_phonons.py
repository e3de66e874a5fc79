"""Phonons: spring lattices with known dispersion, masses, and ASE's finite displacements."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax.errors import EquijaxError
from equijax.statics import force_constants, relax
from equijax.statics.vibrations import mode_energies
from tests.statics.pair_model import pair_potential

K = 2.0
SPRINGS = pair_potential(K)
RANDOM_Q = np.random.default_rng(0).uniform(-1, 1, size=(20, 3))


def test_a_diatomic_chain():
    """ω² = k (1/m + 1/M) ± k √((1/m + 1/M)² - 4 sin²(qa/2) / mM), and nothing across."""
    light, heavy = 10.0, 40.0
    chain = Atoms("Ar2", positions=[[0, 0, 0], [1, 0, 0]], cell=[2, 0, 0], pbc=(True, False, False))
    chain.set_masses([light, heavy])
    found = force_constants(SPRINGS, chain, (3, 1, 1))
    assert found.sum_rule < 1e-12
    assert found.asymmetry < 1e-12
    assert found.at_boundary == 0
    q = np.linspace(0, 0.5, 7)
    energies = found.energies(np.stack([q, 0 * q, 0 * q], axis=1))
    total = 1 / light + 1 / heavy
    root = np.sqrt(total**2 - 4 * np.sin(np.pi * q) ** 2 / (light * heavy))
    np.testing.assert_allclose(energies[:, 4], mode_energies(K * (total - root)), atol=1e-8)
    np.testing.assert_allclose(energies[:, 5], mode_energies(K * (total + root)), atol=1e-10)
    np.testing.assert_allclose(energies[:, :4], 0, atol=1e-8)
    with pytest.raises(EquijaxError, match="direction b, which is not periodic"):
        force_constants(SPRINGS, chain, (2, 2, 1))
    with pytest.raises(EquijaxError, match="modes of a molecule"):
        force_constants(SPRINGS, Atoms("Ar2", positions=[[0, 0, 0], [1, 0, 0]]))


@pytest.mark.parametrize("cubic", [False, True])
def test_fcc_at_any_wave_vector(cubic):
    """m D(q) = k Σ n nᵀ (1 - cos q·d) over the twelve neighbours; the cubic cell folds four wave vectors into one."""
    crystal = bulk("Ar", "fcc", a=2**0.5, cubic=cubic)
    found = force_constants(SPRINGS, crystal, (2, 2, 2) if cubic else (3, 3, 3))
    neighbors = np.array([v for v in np.ndindex(3, 3, 3) if np.abs(np.array(v) - 1).sum() == 2]) - 1
    bonds = neighbors / 2**0.5
    mass = crystal.get_masses()[0]

    def exact(wave_vectors: np.ndarray) -> np.ndarray:
        cosines = 1 - np.cos(wave_vectors @ bonds.T)
        return mode_energies(np.linalg.eigvalsh(K * np.einsum("qd,da,db->qab", cosines, bonds, bonds) / mass))

    wave_vectors = 2 * np.pi * RANDOM_Q @ np.linalg.inv(crystal.cell.array).T
    folded = [np.zeros(3)]
    if cubic:
        folded += [2 * np.pi / 2**0.5 * np.array(g) for g in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    expected = np.sort(np.concatenate([exact(wave_vectors + g) for g in folded], axis=1))
    np.testing.assert_allclose(found.energies(RANDOM_Q), expected, atol=1e-9)
    if not cubic:
        path, energies = found.bands(points=30)
        assert len(energies) == len(path.kpts) == 30
        assert energies.min() > -1e-8
        axis, density = found.density_of_states((6, 6, 6))
        assert np.sum(density) * (axis[1] - axis[0]) == pytest.approx(3)
        with pytest.raises(EquijaxError, match="no path through"):
            found.bands("GQ")


@pytest.mark.slow
def test_agrees_with_finite_displacements(tmp_path):
    from ase.phonons import Phonons

    from equijax import EquijaxCalculator

    morse = pair_potential(0.8, kind="morse", cutoff=5.5, length=3.0)
    crystal = relax(morse, bulk("Ar", "hcp", a=3.0, c=4.9), cell="full", fmax=1e-7, smax=1e-4).atoms
    found = force_constants(morse, crystal, (3, 3, 2))
    reference = Phonons(crystal, EquijaxCalculator(morse), (3, 3, 2), name=str(tmp_path / "ph"), delta=1e-3)
    reference.run()
    reference.read(acoustic=True)
    q = np.array([[1 / 3, 0, 0], [1 / 3, 1 / 3, 0.5], [0, 0, 0.5]])  # that fit into the supercell
    expected = np.array([np.sort(np.asarray(reference.band_structure([k]))[0]) for k in q])
    np.testing.assert_allclose(found.energies(q), expected, atol=2e-6)
    assert 0 < found.at_boundary < 0.1
