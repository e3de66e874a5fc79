"""A rotated structure: the same energies, rotated forces, stress and features."""

from __future__ import annotations

import numpy as np
import pytest

from .irreps_matrices import feature_matrix
from .structures import everything, random_rotation, transformed
from .subject import OUTPUTS

QUARTER_TURN = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


def assert_equivariant(subject, within, matrix, what):
    structures = everything()
    turned = subject.evaluate([transformed(s, matrix) for s in structures])
    features = feature_matrix(subject.case.feature_irreps, matrix)
    for before, after in zip(subject.evaluate(structures), turned, strict=True):
        expected = {
            "energy": before.energy,
            "node_energies": before.node_energies,
            "node_features": before.node_features @ features.T,
            "forces": before.forces @ matrix.T,
            "stress": matrix @ before.stress @ matrix.T,
        }
        for key in OUTPUTS:
            within(getattr(after, key), expected[key], subject.tolerance.symmetry, f"{what} {key}")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rotation(subject, within, seed):
    assert_equivariant(subject, within, random_rotation(seed), "rotation")


def test_rotation_that_permutes_the_axes(subject, within):
    assert_equivariant(subject, within, QUARTER_TURN, "rotation")
