"""The independent polynomials behind the symmetric contraction, as a tree of couplings.

Every equivariant polynomial of order three is a pair coupling (l1 l2 -> l12) coupled with a third factor l3. Pair
couplings with natural parity, each unordered pair once, already span the symmetric space, and outputs share them.
So instead of the redundant basis of MACE (23 + 51 cubic weights for degrees 0 and 1, lmax 3) the tree has 8 + 12
polynomials, and one small constant matrix takes MACE's weights there: exact, because both span the same space.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.mace_basis import couple, mace_polynomials, monomials


class Pair(NamedTuple):
    """Coupling of two factors, l1 <= l2, to degree l12."""

    l1: int
    l2: int
    l12: int


class Triple(NamedTuple):
    """Coupling of a pair with a third factor of degree l3."""

    pair: Pair
    l3: int


def _pair_polynomial(pair: Pair, lmax: int) -> np.ndarray:
    return couple(np.eye((lmax + 1) ** 2)[degree_slice(pair.l1)], pair.l1, pair.l2, pair.l12, lmax, 1)


def _pairs(lmax: int, l12_max: int) -> list[Pair]:
    """Unordered natural-parity pair couplings, cheapest first."""
    return sorted(
        (
            Pair(l1, l2, l12)
            for l1 in range(lmax + 1)
            for l2 in range(l1, lmax + 1)
            for l12 in range(l2 - l1, min(l1 + l2, l12_max) + 1)
            if (l1 + l2 + l12) % 2 == 0
        ),
        key=lambda pair: (pair.l12, pair.l1 + pair.l2, pair.l2),
    )


@functools.cache
def pair_terms(pair: Pair) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """Per component of l12: (row of x, row of x, coefficient), each product of rows once."""
    coupling = wigner_3j(pair.l12, pair.l1, pair.l2) * np.sqrt(2 * pair.l12 + 1)
    components = []
    for m in range(2 * pair.l12 + 1):
        merged: dict[tuple[int, int], float] = {}
        for i, j in np.argwhere(np.abs(coupling[m]) > 1e-12):
            a, b = sorted((pair.l1**2 + int(i), pair.l2**2 + int(j)))
            merged[a, b] = merged.get((a, b), 0.0) + float(coupling[m, i, j])
        components.append(tuple((a, b, c) for (a, b), c in merged.items() if abs(c) > 1e-12))
    return tuple(components)


class Tree(NamedTuple):
    """The independent polynomials of one order and degree, and how the weights of both bases map to them."""

    nodes: tuple  # Pair for order two, Triple for order three
    projection: np.ndarray  # [MACE weights, nodes]
    symmetric: np.ndarray  # [nodes, nodes]


@functools.cache
def power_tree(lmax: int, l_out: int, order: int) -> Tree:
    """Pick independent tree polynomials, cheapest first, until MACE's basis is spanned; raises if it never is."""
    target = mace_polynomials(lmax, l_out, order).reshape(-1, (2 * l_out + 1) * _monomial_count(lmax, order))
    # Polynomials of one degree are determined by one component; all are kept, the matrices are small.
    candidates: list[tuple[Pair | Triple, np.ndarray]] = []
    if order == 2:
        for pair in _pairs(lmax, l_out):
            if pair.l12 == l_out:
                candidates.append((pair, _pair_polynomial(pair, lmax)))
    else:
        for pair in _pairs(lmax, 2 * lmax):
            for l3 in range(lmax + 1):
                if abs(pair.l12 - l3) <= l_out <= pair.l12 + l3 and (pair.l12 + l3 + l_out) % 2 == 0:
                    polynomial = couple(_pair_polynomial(pair, lmax), pair.l12, l3, l_out, lmax, 2)
                    candidates.append((Triple(pair, l3), polynomial))
    rank = np.linalg.matrix_rank(target, tol=1e-9)
    chosen, rows, orthonormal = [], [], np.zeros((0, target.shape[1]))
    for node, polynomial in candidates:
        row = polynomial.reshape(-1)
        residual = row - orthonormal.T @ (orthonormal @ row)
        residual -= orthonormal.T @ (orthonormal @ residual)
        if np.linalg.norm(residual) > 1e-8 * max(1.0, float(np.linalg.norm(row))):
            chosen.append(node)
            rows.append(row)
            orthonormal = np.vstack([orthonormal, residual / np.linalg.norm(residual)])
        if len(chosen) == rank:
            break
    projection = np.linalg.lstsq(np.stack(rows).T, target.T, rcond=None)[0].T
    if np.abs(projection @ np.stack(rows) - target).max() > 1e-10:
        raise ArithmeticError(f"the tree basis does not span order {order}, degree {l_out}, lmax {lmax}")
    projection[np.abs(projection) < 1e-14] = 0.0
    symmetric = _orthonormal(np.stack(rows), lmax, l_out, order)
    for matrix in (projection, symmetric):
        matrix.setflags(write=False)
    return Tree(tuple(chosen), projection, symmetric)


def _orthonormal(rows: np.ndarray, lmax: int, l_out: int, order: int) -> np.ndarray:
    """[nodes, nodes]: combinations of the tree polynomials that are orthogonal as symmetric tensors, each of squared
    norm 2 l_out + 1 like MACE's, by Gram and Schmidt from the first node on.

    A monomial that stands for n products of components has n equal tensor elements, its coefficient over n each.
    """
    products = [
        math.factorial(order) // math.prod(math.factorial(m.count(row)) for row in set(m))
        for m in monomials((lmax + 1) ** 2, order)
    ]
    tensors = rows.reshape(len(rows), 2 * l_out + 1, -1) / np.sqrt(products)
    gram = np.einsum("smp,tmp->st", tensors, tensors) / (2 * l_out + 1)
    return np.linalg.inv(np.linalg.cholesky(gram))


def _monomial_count(lmax: int, order: int) -> int:
    return mace_polynomials(lmax, 0, order).shape[-1]
