"""Symmetric contraction (MACE): equivariant polynomials of one atom's features, weighted per species."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.power_tree import Pair, pair_terms, power_tree
from equijax.ops.tensor_product import AbstractSymmetricPowers

PowerBasis = Literal["full", "symmetric"]


def _rows(x: jax.Array) -> list[jax.Array]:
    """[N, R, C] as R arrays [N, C]. `lax.split` transposes to one concatenation; slices would each be padded."""
    return [row[:, 0] for row in jax.lax.split(x, (1,) * x.shape[1], axis=1)]


def _weighted_sum(terms: list[tuple[float, jax.Array]]) -> jax.Array:
    total = terms[0][0] * terms[0][1]
    for coefficient, value in terms[1:]:
        total = total + coefficient * value
    return total


@dataclasses.dataclass(frozen=True)
class TreeSymmetricPowers(AbstractSymmetricPowers):
    """Orders one to three, evaluated as a tree of independent polynomials whatever the basis of the weights."""

    basis: PowerBasis = "full"

    def weight_count(self, l_out: int, order: int) -> int:
        return 1 if order == 1 else self._to_tree(l_out, order).shape[0]

    def _to_tree(self, l_out: int, order: int) -> np.ndarray:
        tree = power_tree(self.lmax_in, l_out, order)
        return tree.projection if self.basis == "full" else tree.symmetric

    def contract(
        self, x: jax.Array, weights: dict[tuple[int, int], jax.Array], species_one_hot: jax.Array
    ) -> jax.Array:
        selected = []
        for (l_out, order), w in sorted(weights.items()):
            if order > 1:
                w = jnp.einsum("zec,et->ztc", w, self._to_tree(l_out, order).astype(x.dtype))
            selected.append((species_one_hot @ w.reshape(w.shape[0], -1)).reshape(x.shape[0], -1, x.shape[-1]))
        return self._unrolled(x, [_rows(w) for w in selected])

    def _unrolled(self, x: jax.Array, weights: list[list[jax.Array]]) -> jax.Array:
        """The tree as arithmetic on [N, C] arrays; `weights` per degree and order, then per tree node."""
        rows = _rows(x)

        @functools.cache
        def pair_product(pair: Pair) -> list[jax.Array]:
            return [_weighted_sum([(c, rows[a] * rows[b]) for a, b, c in terms]) for terms in pair_terms(pair)]

        per_order = iter(weights)
        outputs: list[jax.Array] = []
        for l_out in range(self.lmax_out + 1):
            (linear_weight,) = next(per_order)
            result = [linear_weight * row for row in rows[degree_slice(l_out)]]
            if self.correlation >= 2:
                for pair, w in zip(power_tree(self.lmax_in, l_out, 2).nodes, next(per_order)):
                    result = [r + w * q for r, q in zip(result, pair_product(pair))]
            if self.correlation >= 3:
                nodes = power_tree(self.lmax_in, l_out, 3).nodes
                weighted = [[w * q for q in pair_product(node.pair)] for node, w in zip(nodes, next(per_order))]
                for (l12, l3), members in _grouped(nodes).items():
                    v = [sum(components[1:], components[0]) for components in zip(*(weighted[i] for i in members))]
                    for m, terms in _coupled(v, rows[degree_slice(l3)], l12, l3, l_out):
                        result[m] = result[m] + terms
            outputs.extend(result)
        return jnp.stack(outputs, axis=1)


def _grouped(nodes: tuple) -> dict[tuple[int, int], list[int]]:
    """Positions of the cubic nodes that share the degrees of their last coupling, which is then done once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(nodes):
        groups.setdefault((node.pair.l12, node.l3), []).append(i)
    return groups


def _coupled(v: list[jax.Array], x: list[jax.Array], l12: int, l3: int, l_out: int) -> Iterator[tuple[int, jax.Array]]:
    """(component m, one product) pairs whose sum couples v of degree l12 with x of degree l3 to l_out."""
    coupling = wigner_3j(l_out, l12, l3) * np.sqrt(2 * l_out + 1)
    for m in range(2 * l_out + 1):
        for j in range(2 * l3 + 1):
            nonzero = np.flatnonzero(np.abs(coupling[m, :, j]) > 1e-12)
            if nonzero.size:
                yield m, _weighted_sum([(float(coupling[m, i, j]), v[i]) for i in nonzero]) * x[j]
