"""Sums over neighbours in which each channel has its own radial weight, one for both directions of an edge.

    pair_sum(w, x)[n, r] = Σ_k w[pair(n, k), l(r)] x[neighbor(n, k), r]
    pair_dot(a, b)[p, l] = Σ_{r in l} a[n, r] b[j, r] + a[j, r] b[n, r],    p = (n, j)

Both are bilinear and symmetric: pair_sum(w, ·) is its own transpose, and pair_dot is the transpose of pair_sum in w. So
they are closed under differentiation to any order, and no derivative scatters or stores anything per edge and row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.neighbor_gather import gather_senders
from equijax.graph.neighbor_pairs import AnyPairs, NeighborPairs, SlotPairs, masked
from equijax.graph.row_blocks import map_row_blocks
from equijax.irreps.layout import degree_slice
from equijax.ops.bilinear import bilinear_primitive, set_transposes

BLOCK_RECEIVERS = 8
PAIR_BLOCKS = 8


def pair_sum(weights: jax.Array, x: jax.Array, pairs: AnyPairs) -> jax.Array:
    """weights [P, lmax+1, C] and features x [N, (lmax+1)², C] to [N, (lmax+1)², C]; see the module.

    With atoms on other devices an edge has weights of its own and the senders are gathered first, [N, K, (lmax+1)², C].
    """
    if isinstance(pairs, SlotPairs):
        senders = gather_senders(x, pairs.neighbors, pairs.slot_mask, pairs.halo)
        per_slot = pairs.to_slots(weights)
        degrees = [
            jnp.einsum("nkrc,nkc->nrc", senders[:, :, degree_slice(l)], per_slot[:, :, l])
            for l in range(weights.shape[1])
        ]
        return jnp.concatenate(degrees, axis=1)
    return _pair_sum.bind(weights, x, pairs.neighbors, pairs.slot_mask, pairs.pair, pairs.atoms, pairs.mask)


def pair_dot(a: jax.Array, b: jax.Array, pairs: NeighborPairs) -> jax.Array:
    """a and b [N, (lmax+1)², C] to [P, lmax+1, C], zero for padded pairs; see the module."""
    return _pair_dot.bind(a, b, pairs.neighbors, pairs.slot_mask, pairs.pair, pairs.atoms, pairs.mask)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def _sum(
    weights: jax.Array, x: jax.Array, neighbors: jax.Array, slot_mask: jax.Array, pair: jax.Array, *_: jax.Array
) -> jax.Array:
    def block(arrays: tuple[jax.Array, ...]) -> jax.Array:
        neighbors, slot_mask, pair = arrays
        # With the gathers inside the product of one degree, XLA makes one loop of them.
        degrees = [
            masked(_rows(weights[:, l], pair)[:, :, None] * _rows(x[:, degree_slice(l)], neighbors), slot_mask)
            for l in range(weights.shape[1])
        ]
        return jnp.concatenate([jnp.sum(products, axis=1) for products in degrees], axis=1)

    # However few the blocks: XLA cannot fuse sums in a loop with what follows them. Fused into a consumer a sum loses
    # its vector instructions, and takes ten times as long.
    return map_row_blocks(block, (neighbors, slot_mask, pair), BLOCK_RECEIVERS)


def _dot(
    a: jax.Array, b: jax.Array, neighbors: Any, slot_mask: Any, pair: Any, atoms: jax.Array, mask: jax.Array
) -> jax.Array:
    def block(arrays: tuple[jax.Array, ...]) -> jax.Array:
        atoms, mask = arrays
        n, j = atoms[:, 0], atoms[:, 1]
        degrees = []
        for l in range(round(a.shape[1] ** 0.5)):
            one, two = a[:, degree_slice(l)], b[:, degree_slice(l)]
            degrees.append(jnp.sum(_rows(one, n) * _rows(two, j) + _rows(one, j) * _rows(two, n), axis=1))
        return masked(jnp.stack(degrees, axis=1), mask)

    return map_row_blocks(block, (atoms, mask), mask.shape[0] // PAIR_BLOCKS)


_pair_sum = bilinear_primitive("pair_sum", _sum, lambda weights, x, *_: x)
_pair_dot = bilinear_primitive("pair_dot", _dot, lambda a, b, *indices: (*indices[-1], round(a[1] ** 0.5), a[2]))
set_transposes(
    _pair_sum,
    to_one=lambda cotangent, x, *indices: _pair_dot.bind(cotangent, x, *indices),
    to_two=lambda cotangent, weights, *indices: _pair_sum.bind(weights, cotangent, *indices),
)
set_transposes(_pair_dot, to_one=_pair_sum.bind, to_two=_pair_sum.bind)
