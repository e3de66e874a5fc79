"""Vibrations: a diatomic by hand, free motions, ASE's finite displacements, Lanczos against the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.vibrations import Vibrations as FiniteDifferences

from equijax import EquijaxCalculator
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.statics import lowest_modes, relax, vibrational_modes
from tests.statics.pair_model import pair_potential

MORSE = pair_potential(0.8, kind="morse", cutoff=6.0, length=3.0)
SPRINGS = pair_potential(2.0)


def cluster(atoms: int = 5) -> Atoms:
    start = Atoms(f"Ar{atoms}", positions=np.random.default_rng(1).normal(size=(atoms, 3)) * 2.5)
    return relax(MORSE, start, fmax=1e-9, max_steps=2000).atoms


def test_a_diatomic_vibrates_with_the_reduced_mass():
    pair = Atoms("Ar2", positions=[[0, 0, 0], [0.6, 0, 0.8]], masses=[40.0, 10.0])
    found = vibrational_modes(SPRINGS, pair)
    omega = np.sqrt(2.0 * units._e * 1e20 / (8.0 * units._amu))
    assert found.energies == pytest.approx([units._hbar * omega / units._e], rel=1e-9)
    assert found.wavenumbers[0] == pytest.approx(omega / (2 * np.pi * units._c * 100), rel=1e-6)
    assert found.zero_point_energy == pytest.approx(found.energies[0] / 2)
    assert found.free == 5
    assert found.residual < 1e-7
    gas = found.thermochemistry(1.0, geometry="linear", symmetrynumber=1, spin=0)
    assert gas.get_enthalpy(300, verbose=False) > 1.0
    frames = found.mode_frames(0, frames=4, amplitude=0.1)
    assert np.linalg.norm(frames[1].positions - pair.positions, axis=1).max() == pytest.approx(0.1)
    assert vibrational_modes(SPRINGS, Atoms("Ar")).energies.size == 0


def test_agrees_with_ase_and_imaginary_modes_are_shown(tmp_path):
    atoms = cluster()
    found = vibrational_modes(MORSE, atoms)
    assert found.num_imaginary == 0
    assert found.free == 6
    assert found.asymmetry < 1e-12
    atoms.calc = EquijaxCalculator(MORSE)
    reference = FiniteDifferences(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    reference.run()
    expected = np.sort(reference.get_energies().real)[6:]
    np.testing.assert_allclose(found.energies, expected, rtol=1e-4)

    square = relax(MORSE, Atoms("Ar4", positions=[[0, 0, 0], [3, 0, 0], [3, 3, 0], [0, 3, 0]]), fmax=1e-9).atoms
    saddle = vibrational_modes(MORSE, square)
    assert saddle.num_imaginary >= 1
    assert saddle.wavenumbers[0] < 0
    with pytest.raises(EquijaxError, match="imaginary modes: thermochemistry needs a minimum"):
        saddle.thermochemistry()
    with pytest.warns(EquijaxWarning, match="relax it first"):
        vibrational_modes(MORSE, Atoms("Ar2", positions=[[0, 0, 0], [2.5, 0, 0]]))


def test_lanczos_finds_the_lowest_modes_of_the_whole_matrix():
    crystal = bulk("Ar", "fcc", a=2**0.5, cubic=True) * (2, 2, 1)
    crystal.set_masses(np.random.default_rng(0).uniform(20, 60, size=16))  # lifts degeneracies
    whole = vibrational_modes(SPRINGS, crystal)
    few = lowest_modes(SPRINGS, crystal, 5)
    np.testing.assert_allclose(few.energies, whole.energies[:5], atol=1e-9)
    overlap = np.einsum("mna,n,kna->mk", few.modes, crystal.get_masses(), whole.modes[:5])
    np.testing.assert_allclose(np.abs(np.linalg.det(overlap)), 1, atol=1e-5)
    with pytest.raises(EquijaxError, match="did not converge in 10 products"):
        lowest_modes(SPRINGS, crystal, 5, max_products=10)
    with pytest.raises(EquijaxError, match="compute all of them"):
        lowest_modes(SPRINGS, Atoms("Ar2", positions=[[0, 0, 0], [1, 0, 0]]), 1)
