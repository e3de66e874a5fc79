"""The polynomials behind MACE's symmetric contraction, as coefficient vectors over monomials of the features.

For features x with rows (l, m), l <= lmax, an equivariant polynomial of order ν and degree L is a matrix
[2L+1, monomials of order ν]. Only the symmetric part of MACE's U tensors matters, and that is what is kept here.
`mace_polynomials` follows the construction order of mace-torch, so weights can be exchanged with it.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j


@functools.cache
def monomials(dim: int, order: int) -> tuple[tuple[int, ...], ...]:
    """All products of `order` rows out of `dim`, each once, as sorted index tuples."""
    return tuple(itertools.combinations_with_replacement(range(dim), order))


@functools.cache
def _raise_order(dim: int, order: int) -> np.ndarray:
    """[monomials(order), dim] -> position of the product in monomials(order + 1)."""
    position = {monomial: i for i, monomial in enumerate(monomials(dim, order + 1))}
    return np.array(
        [[position[tuple(sorted((*m, row)))] for row in range(dim)] for m in monomials(dim, order)],
        dtype=np.int64,
    )


def couple(polynomial: np.ndarray, l1: int, l2: int, l: int, lmax: int, order: int) -> np.ndarray:
    """Couple a polynomial of degree l1 and `order` with the features of degree l2 to degree l, component norm.

    [2l1+1, monomials(order)] -> [2l+1, monomials(order + 1)], with √(2l+1) w3j(l, l1, l2) as in e3nn.
    """
    dim = (lmax + 1) ** 2
    coupling = wigner_3j(l, l1, l2) * np.sqrt(2 * l + 1)
    product = np.einsum("mab,ap->mpb", coupling, polynomial)
    target = _raise_order(dim, order)[:, degree_slice(l2)]
    result = np.zeros((2 * l + 1, len(monomials(dim, order + 1))))
    for m in range(2 * l + 1):
        np.add.at(result[m], target, product[m])
    return result


@functools.cache
def mace_polynomials(lmax: int, l_out: int, order: int) -> np.ndarray:
    """[weights, 2 l_out + 1, monomials(order)]: the basis of mace-torch 0.3.16 (full, not reduced) in its order.

    Built by coupling one factor at a time from the left, over all intermediate degrees and parities; after every
    order the list is sorted by degree and parity, odd parity first, stably. Redundant entries are kept, because
    each has a trained weight of its own.
    """
    dim = (lmax + 1) ** 2
    identity = np.eye(dim)
    items = [((l, (-1) ** l), identity[degree_slice(l)]) for l in range(lmax + 1)]
    for current in range(1, order):
        is_last = current == order - 1
        raised = []
        for (l1, p1), polynomial in items:
            for l2 in range(lmax + 1):
                parity = p1 * (-1) ** l2
                for l in range(abs(l1 - l2), l1 + l2 + 1):
                    if is_last and (l, parity) != (l_out, (-1) ** l_out):
                        continue
                    raised.append(((l, parity), couple(polynomial, l1, l2, l, lmax, current)))
        items = sorted(raised, key=lambda item: item[0])
    wanted = [polynomial for key, polynomial in items if key == (l_out, (-1) ** l_out)]
    basis = np.stack(wanted)
    basis.setflags(write=False)
    return basis
