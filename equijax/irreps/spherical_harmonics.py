"""Real spherical harmonics of unit vectors, e3nn basis, component normalisation: sum_m Y_lm² = 2l + 1."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.wigner_3j import wigner_3j


@functools.cache
def _step_up(l: int) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """Nonzero (i, j, c) per row k with Y_{l+1,k} = sum c Y_{l,i} Y_{1,j}, from the stretched coupling.

    The stretched coupling of two harmonics of one direction is the next harmonic up to a constant, which the
    component norm at the polar axis y fixes, with the positive sign of e3nn at that pole.
    """
    coupling = wigner_3j(l, 1, l + 1)
    pole_l = np.zeros(2 * l + 1)
    pole_l[l] = np.sqrt(2 * l + 1)
    pole_1 = np.array([0.0, np.sqrt(3.0), 0.0])
    value = np.einsum("i,j,ijk->k", pole_l, pole_1, coupling)
    coupling = coupling * (np.sqrt(2 * l + 3) / value[l + 1])
    rows = []
    for k in range(2 * l + 3):
        nonzero = np.argwhere(np.abs(coupling[:, :, k]) > 1e-12)
        rows.append(tuple((int(i), int(j), float(coupling[i, j, k])) for i, j in nonzero))
    return tuple(rows)


def spherical_harmonics(unit: jax.Array, lmax: int) -> jax.Array:
    """Y_lm of unit vectors [..., 3] for l = 0..lmax, as [..., (lmax+1)²].

    A polynomial of the components (x, y, z), so every derivative exists everywhere, poles included; the caller
    normalises the vectors. For l = 1 the rows are √3 (x, y, z).

    >>> import numpy as np
    >>> np.round(spherical_harmonics(np.array([0.0, 1.0, 0.0]), 2), 4).tolist()
    [1.0, 0.0, 1.7321, 0.0, 0.0, 0.0, 2.2361, 0.0, 0.0]
    """
    ones = jnp.ones_like(unit[..., 0])
    rows: list[list[Any]] = [[ones]]
    if lmax >= 1:
        rows.append([np.sqrt(3.0).astype(unit.dtype) * unit[..., axis] for axis in range(3)])
    for l in range(1, lmax):
        rows.append([sum(c * rows[l][i] * rows[1][j] for i, j, c in row) for row in _step_up(l)])
    return jnp.stack([component for degree in rows for component in degree], axis=-1)
