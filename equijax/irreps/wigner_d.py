"""Wigner D matrices of real harmonics from rotation matrices, and the rotation that takes an edge to the polar axis.

Everything is a polynomial of the rotation matrix, so derivatives of any order exist and no Euler angles appear.
The stretched coupling C = w3j(1, l-1, l) intertwines, (R ⊗ D^{l-1}) C = C D^l. Its row (y, m) has the single entry
C[y, m, m], so that

    D^l[m, :] = R[y, :] ⊗ D^{l-1}[m, :] · C / C[y, m, m]              for |m| < l,
    D^l[m, :] = (2l+1) sum_{i, j} C[i, j, m] R[i, :] ⊗ D^{l-1}[j, :] · C   for |m| = l, from j = ±(l-1) only.

Rows |m| <= mmax therefore need rows |m| <= mmax of the degree below and nothing else, and upward in l the
recursion is stable.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.wigner_3j import wigner_3j


@functools.cache
def _step_up(l: int) -> tuple[np.ndarray, np.ndarray, tuple[tuple[tuple[int, int, float], ...], ...]]:
    """From D^{l-1} to D^l: C as a matrix [3 (2l-1), 2l+1], 1 / C[y, m, m] for |m| < l, and the nonzero
    (i, j, (2l+1) C[i, j, m]) for m = -l and m = l."""
    coupling = wigner_3j(1, l - 1, l)
    inner = 1 / np.diagonal(coupling[1, :, 1:-1])
    outer = tuple(
        tuple((int(i), int(j), float((2 * l + 1) * coupling[i, j, k])) for i, j in np.argwhere(coupling[:, :, k]))
        for k in (0, 2 * l)
    )
    return coupling.reshape(3 * (2 * l - 1), 2 * l + 1), inner, outer


def wigner_d(rotation: jax.Array, lmax: int, mmax: int | None = None) -> list[jax.Array]:
    """D^l(R) for l = 0..lmax with Y(R x) = D(R) Y(x), or only its rows |m| <= mmax.

    `rotation` [..., 3, 3], proper. Returns arrays [..., 2 min(l, mmax) + 1, 2l+1], rows m = -min..min. D^1 is R
    itself. Differentiable to any order.

    >>> [d.shape for d in wigner_d(np.eye(3), 3, mmax=1)]
    [(1, 1), (3, 3), (3, 5), (3, 7)]
    """
    reach = lmax if mmax is None else mmax
    rotation = jnp.asarray(rotation)
    degrees = [jnp.ones((*rotation.shape[:-2], 1, 1), rotation.dtype)]
    for l in range(1, lmax + 1):
        if l == 1:
            degrees.append(rotation if reach >= 1 else rotation[..., 1:2, :])
            continue
        below = degrees[-1]
        matrix, inner, outer = _step_up(l)
        rows = below.shape[-2] // 2
        scale = inner[l - 1 - rows : l + rows].astype(rotation.dtype)
        # [..., m, 3, 2l-1]
        products = (below * scale[:, None])[..., :, None, :] * rotation[..., None, 1, :, None]
        if l <= reach:
            first, last = (
                sum(c * below[..., j, None, None, :] * rotation[..., i, None, :, None] for i, j, c in terms)
                for terms in outer
            )
            products = jnp.concatenate([first, products, last], axis=-3)
        products = products.reshape(*products.shape[:-2], matrix.shape[0])
        # TF32 or bfloat16 here would break equivariance at 1e-3; the matrices are small.
        degrees.append(jnp.matmul(products, matrix.astype(rotation.dtype), precision=jax.lax.Precision.HIGHEST))
    return degrees


def alignment(unit: jax.Array) -> jax.Array:
    """A rotation Q [..., 3, 3] with Q r = e_y for unit vectors r [..., 3].

    For y >= 0 the smallest rotation, the quaternion (1 + y, -z, 0, x); for y < 0 half a turn about x first, the
    quaternion (-z, 1 - y, x, 0). The charts differ by a rotation about y and are not blended: what is computed with Q
    must not depend on such a rotation, and then its value and all its derivatives are right, at the poles too. Only
    1 + |y| is ever divided by. A vector of zeros gives a finite matrix.
    """
    x, y, z = (unit[..., axis] for axis in range(3))
    # A constant sign, not |y|, so that derivatives at y = 0 are those of one chart.
    sign = jnp.where(y < 0, -1.0, 1.0).astype(unit.dtype)
    scale = 1 / (1 + sign * y)
    rows = (
        (1 - x * x * scale, -sign * x, -x * z * scale),
        (x, y, z),
        (-sign * x * z * scale, -z, sign * (1 - z * z * scale)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
