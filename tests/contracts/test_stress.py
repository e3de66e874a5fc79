"""Stress is the derivative of the energy with respect to strain over the volume, symmetric, ASE's sign."""

from __future__ import annotations

import numpy as np

from .cases import FINITE_DIFFERENCE_STRESS
from .finite_differences import derivative
from .structures import everything, transformed
from .test_forces import KINDS


def test_stress_is_the_strain_derivative(subject64, within):
    structures = everything()
    numeric = np.zeros((len(structures), 3, 3))
    for a in range(3):
        for b in range(a, 3):

            def energies(x, a=a, b=b):
                strain = np.zeros((3, 3))
                strain[a, b] += x / 2
                strain[b, a] += x / 2
                strained = [transformed(s, np.eye(3) + strain) for s in structures]
                return np.array([float(r.energy) for r in subject64.evaluate(strained)])

            numeric[:, a, b] = numeric[:, b, a] = derivative(energies, 1e-3)
    for kind, s, result, virial in zip(KINDS, structures, subject64.evaluate(structures), numeric, strict=True):
        # A molecule has no volume; its entry is the virial itself.
        volume = s.volume or 1.0
        within(result.stress, virial / volume, FINITE_DIFFERENCE_STRESS, f"finite-difference stress, {kind}")


def test_stress_is_symmetric(subject):
    for result in subject.evaluate(everything()):
        np.testing.assert_array_equal(result.stress, result.stress.T)
        assert np.abs(result.stress).max() > 0
