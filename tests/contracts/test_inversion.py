"""An inverted or reflected structure: the same energies, forces and features with their parity."""

from __future__ import annotations

import numpy as np
import pytest

from .structures import random_rotation
from .test_rotation import assert_equivariant


@pytest.mark.parametrize(
    "matrix",
    [-np.eye(3), np.diag([1.0, -1.0, 1.0]), -random_rotation(5)],
    ids=["inversion", "mirror", "improper"],
)
def test_inversion(subject, within, matrix):
    assert_equivariant(subject, within, matrix, "inversion")
