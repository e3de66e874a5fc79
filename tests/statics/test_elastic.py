"""Elastic constants: springs known by hand, a random network, finite strains with relaxation."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.potential.strain import STRAINS
from equijax.statics import elasticity, relax
from equijax.units import GPA
from tests.statics.pair_model import pair_potential

K = 0.7
SPRINGS = pair_potential(K)


def test_fcc_springs_have_the_constants_known_by_hand():
    """Nearest neighbours k on a lattice a, relaxed length: C11 = 2k/a, C12 = C44 = k/a (Born and Huang)."""
    a, k = 2**0.5, K
    fcc = bulk("Ar", "fcc", a=a)
    result = elasticity(SPRINGS, fcc)
    expected = np.zeros((6, 6))
    expected[:3, :3] = k / a
    expected[range(6), range(6)] = [2 * k / a] * 3 + [k / a] * 3
    np.testing.assert_allclose(result.relaxed * GPA, expected, atol=1e-12)
    np.testing.assert_allclose(result.clamped, result.relaxed, atol=1e-10)  # one atom: nothing to relax
    assert result.is_stable
    moduli = result.moduli()
    assert moduli["bulk_voigt"] * GPA == pytest.approx(4 * k / a / 3)
    assert moduli["bulk_reuss"] == pytest.approx(moduli["bulk_voigt"])
    assert moduli["shear_reuss"] < moduli["shear_hill"] < moduli["shear_voigt"]


def test_hexagonal_close_packing_relaxes_and_supercells_change_nothing():
    """The same network from the formulas of strut networks: C = (C_aff - Gᵀ H⁺ G) / V."""
    hcp = bulk("Ar", "hcp", a=1.0, c=(8 / 3) ** 0.5)
    near = elasticity(SPRINGS, hcp)
    cell, positions = hcp.cell.array, hcp.positions
    stiff, hessian, coupling = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros((6, 6))
    for shift in np.ndindex(3, 3, 3):
        for i in range(2):
            for j in range(2):
                d = positions[j] + (np.array(shift) - 1) @ cell - positions[i]
                length = np.linalg.norm(d)
                if not 0.5 < length < 1.2:
                    continue
                n = d / length
                m = length * np.einsum("vab,a,b->v", STRAINS, n, n)
                b = np.zeros(6)
                b[3 * j : 3 * j + 3] += n
                b[3 * i : 3 * i + 3] -= n
                stiff += 0.35 * np.outer(m, m)
                hessian += 0.35 * np.outer(b, b)
                coupling += 0.35 * np.outer(b, m)
    expected = (stiff - coupling.T @ np.linalg.pinv(hessian, rcond=1e-10) @ coupling) / hcp.get_volume()
    np.testing.assert_allclose(near.relaxed * GPA, expected, atol=1e-10)
    assert np.abs(near.clamped - near.relaxed).max() > 1
    doubled = elasticity(SPRINGS, hcp * (2, 1, 1))
    np.testing.assert_allclose(doubled.relaxed, near.relaxed, atol=1e-8)
    assert near.unstable_modes == 0


@pytest.mark.slow
def test_against_finite_strains_with_relaxation():
    potential = pair_potential(0.8, kind="morse", cutoff=5.5, length=3.0)
    start = bulk("Ar", "hcp", a=3.0, c=4.8)
    rest = relax(potential, start, cell="full", fmax=1e-8, smax=1e-6)
    assert rest.converged
    result = elasticity(potential, rest.atoms)
    step = 1e-3
    for component in (0, 3):
        stresses = []
        for sign in (1, -1):
            strained = rest.atoms.copy()
            strained.set_cell(strained.cell.array @ (np.eye(3) + sign * step * STRAINS[component]), scale_atoms=True)
            stresses.append(relax(potential, strained, fmax=1e-8).atoms.get_stress() / GPA)
        numerical = (stresses[0] - stresses[1]) / (2 * step)
        np.testing.assert_allclose(result.relaxed[:, component], numerical, atol=2e-4 * np.abs(result.relaxed).max())
    assert np.abs(result.relaxed - result.clamped).max() > 0.1


def test_structures_that_have_no_constants():
    with pytest.raises(EquijaxError, match="periodic in three directions"):
        elasticity(SPRINGS, Atoms("Ar2", positions=[[0, 0, 0], [1, 0, 0]]))
    with pytest.warns(EquijaxWarning, match="not at rest"):
        elasticity(SPRINGS, bulk("Ar", "fcc", a=1.05 * 2**0.5))
