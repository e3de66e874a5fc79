"""Features in the frame of each edge and back, sorted by the order m (eSCN, arXiv:2302.03655).

Q turns the edge to the polar axis, Q r = e_y. What is left of the rotations is the turn about e_y, which mixes only the
components m and -m of the turned features g = D(Q) x; they are therefore kept as one array per m = 0..M,

    parts[m] [N, K, S, (L + 1 - m) C], S = 1 for m = 0 and S = 2, +m and then -m, for m > 0; l slow and C fast.

Inversion of the structure leaves g_0 and g_+m and changes the sign of g_-m, at every l. A map of the parts is
equivariant under rotations if it treats (g_+m, g_-m) as a complex number times complex weights, and under inversion
too if these weights are real; functions of g_0 alone are free.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_d import alignment, wigner_d

Parts = tuple[jax.Array, ...]


class EdgeFrame(NamedTuple):
    """`wigner[l]` [N, K, 2 min(l, M) + 1, 2l + 1], the rows |m| <= M of D^l(Q), for l = 0..L."""

    wigner: tuple[jax.Array, ...]

    @property
    def lmax(self) -> int:
        return len(self.wigner) - 1

    def up_to(self, mmax: int) -> EdgeFrame:
        """Its rows |m| <= mmax."""
        return EdgeFrame(tuple(_middle_rows(rows, mmax) for rows in self.wigner))


def _middle_rows(rows: jax.Array, mmax: int) -> jax.Array:
    middle = rows.shape[2] // 2
    reach = min(middle, mmax)
    return rows[:, :, middle - reach : middle + reach + 1]


def edge_frame(unit: jax.Array, lmax: int, mmax: int) -> EdgeFrame:
    """The frames of unit vectors [N, K, 3], differentiable to any order where results do not depend on the roll."""
    return frame_of_rotations(alignment(unit), lmax, mmax)


def frame_of_rotations(rotations: jax.Array, lmax: int, mmax: int) -> EdgeFrame:
    """The frames of given Q [N, K, 3, 3] with Q r = e_y."""
    return EdgeFrame(tuple(wigner_d(rotations, lmax, mmax)))


def m_primary_rows(lmax: int, mmax: int) -> np.ndarray:
    """Positions l² + l + m of the components in the order of `stack_parts`.

    >>> m_primary_rows(2, 1)
    array([0, 2, 6, 3, 7, 1, 5])
    """
    orders = [0, *(sign * m for m in range(1, mmax + 1) for sign in (1, -1))]
    return np.array([l * l + l + m for m in orders for l in range(abs(m), lmax + 1)])


def stack_parts(parts: Parts, lmax: int) -> jax.Array:
    """[N, K, R, C] with one row per component, in the order of `m_primary_rows`."""
    channels = parts[0].shape[-1] // (lmax + 1)
    return jnp.concatenate([p.reshape(*p.shape[:2], -1, channels) for p in parts], axis=2)


def split_parts(rows: jax.Array, lmax: int, mmax: int) -> Parts:
    """The inverse of `stack_parts`."""
    sizes = [(1 if m == 0 else 2) * (lmax + 1 - m) for m in range(mmax + 1)]
    blocks = jax.lax.split(rows, sizes, axis=2)
    return tuple(b.reshape(*rows.shape[:2], 1 if m == 0 else 2, -1) for m, b in enumerate(blocks))


def into_frame(frame: EdgeFrame, x: jax.Array) -> Parts:
    """Parts of features [N, K, (L+1)², C] of every edge, or [N, (L+1)², C] of its receiver. L <= frame.lmax."""
    edges = "nk" if x.ndim == 4 else "n"
    lmax = math.isqrt(x.shape[-2]) - 1
    turned = [
        jnp.einsum(f"nkmi,{edges}ic->nkmc", wigner, x[..., degree_slice(l), :])
        for l, wigner in enumerate(frame.wigner[: lmax + 1])
    ]
    parts = []
    for m in range(turned[-1].shape[2] // 2 + 1):
        # Row m of degree l, counted from the middle.
        orders = [
            jnp.concatenate([t[:, :, t.shape[2] // 2 + order] for t in turned[m:]], axis=-1)
            for order in ((0,) if m == 0 else (m, -m))
        ]
        parts.append(jnp.stack(orders, axis=2))
    return tuple(parts)


def out_of_frame(frame: EdgeFrame, parts: Parts, lmax: int, rescale: bool = False) -> jax.Array:
    """D(Q)^T of the parts, [N, K, (lmax+1)², C].

    `rescale`: degrees l > M get the factor √((2l+1) / (2M+1)), M = len(parts) - 1, for the components that are left
    out (EquiformerV2).
    """
    degrees = _degrees(frame, parts, lmax, rescale)
    return jnp.concatenate([jnp.einsum("nkmi,nkmc->nkic", back, v) for back, v in degrees], axis=2)


def sum_out_of_frame(frame: EdgeFrame, parts: Parts, lmax: int, rescale: bool = False) -> jax.Array:
    """The sum of `out_of_frame` over the neighbours, [N, (lmax+1)², C], one matrix product per degree.

    Padded slots are not masked: their parts must be zero.
    """
    rows = []
    for back, v in _degrees(frame, parts, lmax, rescale):
        flat = (v.shape[0], v.shape[1] * v.shape[2])
        rows.append(jnp.einsum("nqi,nqc->nic", back.reshape(*flat, -1), v.reshape(*flat, -1)))
    return jnp.concatenate(rows, axis=1)


def _degrees(frame: EdgeFrame, parts: Parts, lmax: int, rescale: bool) -> list[tuple[jax.Array, jax.Array]]:
    """Per degree the rows |m| <= M of D and the components [N, K, 2 min(l, M) + 1, C] in the same order."""
    mmax = len(parts) - 1
    channels = parts[0].shape[-1] // (lmax + 1)
    by_degree = [p.reshape(*p.shape[:3], lmax + 1 - m, channels) for m, p in enumerate(parts)]
    degrees = []
    for l in range(lmax + 1):
        reach = min(l, mmax)
        minus = [by_degree[m][:, :, 1, l - m] for m in range(reach, 0, -1)]
        plus = [by_degree[m][:, :, 0, l - m] for m in range(reach + 1)]
        back = _middle_rows(frame.wigner[l], reach)
        if rescale and l > mmax:
            back = back * math.sqrt((2 * l + 1) / (2 * mmax + 1))
        degrees.append((back, jnp.stack(minus + plus, axis=2)))
    return degrees
