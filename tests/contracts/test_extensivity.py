"""Two fragments out of reach of each other: the energy of both, the forces of each."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import CUTOFF
from .structures import ethanol, joined, methanol, moved


@pytest.mark.parametrize("distance", [2 * CUTOFF + 6.0, 500.0])
def test_two_far_fragments(subject, within, distance):
    first, second = ethanol(), moved(methanol(), np.array([distance, 0.0, 0.0]))
    (both,) = subject.evaluate([joined(first, second)])
    one, other = subject.evaluate([first, second])
    for key in ("node_energies", "node_features", "forces"):
        expected = np.concatenate([getattr(one, key), getattr(other, key)])
        within(getattr(both, key), expected, subject.tolerance.symmetry, f"extensivity {key}")
    within(both.energy, one.energy + other.energy, subject.tolerance.symmetry, "extensivity energy")
