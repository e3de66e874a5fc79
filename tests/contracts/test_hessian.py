"""The Hessian is symmetric, the derivative of the forces, and does not couple structures of a batch."""

from __future__ import annotations

import numpy as np

from .cases import FINITE_DIFFERENCE_HESSIAN, HESSIAN_SYMMETRY
from .finite_differences import derivative
from .structures import ethanol, moved, slab, small_crystal


def test_hessian(subject64, within):
    structures = [ethanol(), small_crystal(), slab()]
    hessian = subject64.hessian(structures)
    within(hessian, hessian.T, HESSIAN_SYMMETRY, "Hessian symmetry")
    sizes = [len(s) for s in structures]
    owner = np.repeat(np.arange(len(structures)), [3 * n for n in sizes])
    assert (hessian[owner[:, None] != owner[None, :]] == 0).all()

    numeric = np.zeros_like(hessian)
    starts = 3 * (np.cumsum(sizes) - sizes)
    for column in range(3 * max(sizes)):

        def forces(x, column=column):
            displaced = []
            for s in structures:
                displacement = np.zeros(3 * len(s))
                displacement[column : column + 1] = x  # empty beyond the last atom
                displaced.append(moved(s, displacement.reshape(-1, 3)))
            return np.concatenate([r.forces.reshape(-1) for r in subject64.evaluate(displaced)])

        slope = -derivative(forces, 1e-3)
        for start, size in zip(starts, sizes, strict=True):
            if column < 3 * size:
                numeric[start : start + 3 * size, start + column] = slope[start : start + 3 * size]
    within(hessian, numeric, FINITE_DIFFERENCE_HESSIAN, "finite-difference Hessian")
    # Moving everything along is free.
    rows = hessian.reshape(len(hessian), -1, 3).sum(axis=1)
    within(rows, np.zeros_like(rows), 1e-10, "Hessian acoustic sum", scale=hessian)
