"""Symmetric powers whose results are scalars, as matrix products over all atoms and channels at once.

The last layer of MACE keeps scalars only. Unrolled arithmetic is recomputed by the compiler's fusion for every
component of the gradient; here each stage is a product of a small constant matrix with a [rows, N C] array, which
no fusion crosses: the same speed up to second derivatives at a quarter of the compile time.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.power_tree import Pair, pair_terms, power_tree


class _Stages(NamedTuple):
    """Constants of B = sum_r H_r (1 or x_partner(r)), with H = W[weight_row] * [x; q][factor_row]."""

    first: np.ndarray  # rows of x: the monomials of pair products are x[first] * x[second]
    second: np.ndarray
    pair_matrix: np.ndarray  # [q rows, monomials]
    factor_row: np.ndarray
    weight_row: np.ndarray
    partner: np.ndarray  # row of x, or -1 for orders one and two
    coefficient: np.ndarray


@functools.cache
def _stages(lmax: int, correlation: int) -> _Stages:
    dim = (lmax + 1) ** 2
    quadratic = power_tree(lmax, 0, 2).nodes if correlation >= 2 else ()
    cubic = power_tree(lmax, 0, 3).nodes if correlation >= 3 else ()
    pairs: list[Pair] = sorted({*quadratic, *(triple.pair for triple in cubic)})
    monomials = sorted({(a, b) for pair in pairs for terms in pair_terms(pair) for a, b, _ in terms})
    position = {monomial: i for i, monomial in enumerate(monomials)}
    pair_matrix = np.zeros((sum(2 * pair.l12 + 1 for pair in pairs), len(monomials)))
    first_row, row = {}, 0
    for pair in pairs:
        first_row[pair] = dim + row
        for terms in pair_terms(pair):
            for a, b, c in terms:
                pair_matrix[row, position[a, b]] = c
            row += 1
    rows = [(0, 0, -1, 1.0)]  # order one: the scalar row of x itself
    rows += [(first_row[pair], 1 + i, -1, 1.0) for i, pair in enumerate(quadratic)]
    for i, triple in enumerate(cubic):
        l = triple.l3
        coefficient = wigner_3j(0, l, l)[0, 0, 0]
        for m in range(2 * l + 1):
            rows.append((first_row[triple.pair] + m, 1 + len(quadratic) + i, l * l + m, coefficient))
    factor_row, weight_row, partner, coefficient = zip(*rows)
    # int32 rows: jax remembers how it traced an index array, and int64 ones mean other types in 64-bit mode.
    first, second = np.array(monomials, dtype=np.int32).reshape(-1, 2).T
    factors, weights, partners = (np.array(column, dtype=np.int32) for column in (factor_row, weight_row, partner))
    return _Stages(first, second, pair_matrix, factors, weights, partners, np.array(coefficient))


def scalar_powers(x: jax.Array, weights: jax.Array, lmax: int, correlation: int) -> jax.Array:
    """sum of weighted invariant polynomials of each atom and channel, [N, 1, C].

    `x` [N, (lmax+1)², C]; `weights` [N, n, C] on the tree's polynomials, orders one to `correlation` in turn.
    """
    num_nodes, dim, channels = x.shape
    s = _stages(lmax, correlation)
    x = x.transpose(1, 0, 2).reshape(dim, -1)
    weights = weights.transpose(1, 0, 2).reshape(weights.shape[1], -1)
    if correlation >= 2:
        products = s.pair_matrix.astype(x.dtype) @ (x[s.first] * x[s.second])
        factors = jnp.concatenate([x, products])
    else:
        factors = x
    terms = weights[s.weight_row] * factors[s.factor_row]
    is_cubic = s.partner >= 0
    partners = jnp.where(is_cubic[:, None], x[np.maximum(s.partner, 0)], 1.0)
    total = jnp.asarray(s.coefficient, x.dtype) @ (terms * partners)
    return total.reshape(num_nodes, 1, channels)
