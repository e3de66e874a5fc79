"""Forces are minus the derivative of the energy: molecule, crystals larger and smaller than the cutoff, slab."""

from __future__ import annotations

import numpy as np

from .cases import FINITE_DIFFERENCE_FORCES
from .finite_differences import derivative
from .structures import everything, moved

KINDS = ("molecule", "crystal", "small crystal", "slab")


def test_forces_are_the_gradient(subject64, within):
    structures = everything()
    numeric = [np.zeros((len(s), 3)) for s in structures]
    for atom in range(max(len(s) for s in structures)):
        for axis in range(3):

            def energies(x, atom=atom, axis=axis):
                displaced = []
                for s in structures:
                    displacement = np.zeros((len(s), 3))
                    if atom < len(s):
                        displacement[atom, axis] = x
                    displaced.append(moved(s, displacement))
                return np.array([float(r.energy) for r in subject64.evaluate(displaced)])

            slopes = derivative(energies, 1e-3)
            for s, forces, slope in zip(structures, numeric, slopes, strict=True):
                if atom < len(s):
                    forces[atom, axis] = -slope
    for kind, result, expected in zip(KINDS, subject64.evaluate(structures), numeric, strict=True):
        within(result.forces, expected, FINITE_DIFFERENCE_FORCES, f"finite-difference forces, {kind}")
