"""Energy, force and its derivative are continuous when a neighbour crosses the cutoff."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.structure import Structure

from .cases import CUTOFF
from .structures import joined, methanol
from .subject import OUTPUTS


def pair(distance, numbers=(6, 8)):
    direction = np.array([0.48, -0.6, 0.64])
    return Structure(np.array(numbers), np.array([np.zeros(3), distance * direction]))


def pull(result):
    """Force on the second atom of a pair along the bond."""
    return float(np.linalg.norm(result.forces[1].astype(np.float64)))


@pytest.mark.parametrize("numbers", [(1, 1), (1, 8), (6, 8)])
def test_pair_vanishes_with_the_cube_of_the_gap(subject64, within, numbers):
    """C²: halving the distance to the cutoff divides energy by 8, force by 4, its derivative by 2, or more."""
    gaps = 0.02 / 2.0 ** np.arange(4)
    energies, forces, slopes = [], [], []
    for gap in gaps:
        (near,) = subject64.evaluate([pair(CUTOFF - gap, numbers)])
        (nearer,) = subject64.evaluate([pair(CUTOFF - gap * 0.999, numbers)])
        energies.append(abs(float(near.energy)))
        forces.append(pull(near))
        slopes.append(abs(pull(near) - pull(nearer)) / (gap * 0.001))
    assert energies[0] > 0
    for values, factor in ((energies, 8), (forces, 4), (slopes, 2)):
        ratios = np.array(values[:-1]) / np.array(values[1:])
        assert (ratios > 0.95 * factor).all(), ratios


@pytest.mark.parametrize("numbers", [(1, 1), (1, 8), (6, 6), (6, 8)])
def test_force_at_the_cutoff(subject, within, numbers):
    (inside,) = subject.evaluate([pair(CUTOFF * (1 - 1e-6), numbers)])
    within(inside.forces, np.zeros((2, 3)), subject.tolerance.at_cutoff, "force at the cutoff", scale=1.0)
    (outside,) = subject.evaluate([pair(CUTOFF * (1 + 1e-6), numbers)])
    assert (outside.forces == 0.0).all()
    assert outside.energy == 0.0


def test_neighbour_leaving_a_molecule(subject64):
    """Left and right derivatives of the forces agree at the moment when an edge among many disappears."""
    molecule = methanol()
    centre = int(np.argmax(molecule.positions[:, 0]))
    direction = np.array([1.0, 0.1, -0.05]) / np.linalg.norm([1.0, 0.1, -0.05])

    def forces(gap):
        probe = molecule.positions[centre] + (CUTOFF + gap) * direction
        (result,) = subject64.evaluate([joined(molecule, Structure(np.array([8]), probe[None]))])
        return result.forces

    def jump(step):
        middle = forces(0.0)
        return np.abs((forces(step) - middle) - (middle - forces(-step))).max() / step

    # A jump of the derivative would stay; what is left shrinks with the step, as for a C² energy.
    assert jump(2e-3) < 0.1
    assert jump(5e-4) < 0.3 * jump(2e-3) + 1e-9
    np.testing.assert_allclose(forces(1e-7), forces(-1e-7), atol=1e-7)


def test_edges_beyond_the_cutoff_say_nothing(subject, within):
    """A list with a skin gives what the exact list gives."""
    from .structures import ethanol, slab

    structures = [ethanol(), slab()]
    exact = subject.evaluate(structures)
    for one, other in zip(exact, subject.evaluate(structures, cutoff=CUTOFF + 0.4), strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject.tolerance.batch, f"skin {key}")
