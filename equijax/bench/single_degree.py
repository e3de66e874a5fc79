"""A node product on inputs of one degree only, for the cases l x l -> l and l x l -> 0..2l.

Products are bound to all degrees up to a maximum. Here the other rows are zero: Clebsch-Gordan leaves their couplings
out, and XLA with them the zeros; a product that goes through a grid or a matrix pays for the rows that it reads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from equijax.irreps.layout import degree_slice
from equijax.ops.clebsch_gordan import ClebschGordanNodes
from equijax.ops.tensor_product import AbstractNodeProduct, Path


@dataclasses.dataclass(frozen=True)
class _PathsOfDegree(ClebschGordanNodes):
    """Only the couplings of one input degree, and of one output degree when `only_out`."""

    degree: int = 0
    only_out: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        everything = super().paths
        return tuple(
            p for p in everything if p.l_in == p.l_edge == self.degree and (not self.only_out or p.l_out == self.degree)
        )


@dataclasses.dataclass(frozen=True)
class SingleDegree(AbstractNodeProduct):
    """`inner` between features of one degree; only the results of that degree when `only_out`."""

    inner: AbstractNodeProduct
    degree: int
    only_out: bool

    @property
    def path_count(self) -> int:
        return self.inner.path_count

    @property
    def is_o3(self) -> bool:
        return self.inner.is_o3

    def flops(self) -> int:
        return self.inner.flops()

    def apply_rows(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """x and y [..., 2 l + 1, C], the rows of the degree; [..., 2 l + 1, C], or all rows, as result."""
        result = self.inner.apply(self._padded(x, self.lmax_1), self._padded(y, self.lmax_2), weights)
        return result[..., degree_slice(self.degree), :] if self.only_out else result

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        rows = degree_slice(self.degree)
        result = self.apply_rows(x[..., rows, :], y[..., rows, :], weights)
        return self._padded(result, self.lmax_out) if self.only_out else result

    def _padded(self, rows: jax.Array, lmax: int) -> jax.Array:
        here = degree_slice(self.degree)
        widths = (*((0, 0),) * (rows.ndim - 2), (here.start, (lmax + 1) ** 2 - here.stop), (0, 0))
        return jnp.pad(rows, widths)


def restricted_to_degree(product: AbstractNodeProduct, degree: int, only_out: bool) -> SingleDegree:
    """`product` between features of one degree."""
    degrees = (product.lmax_1, product.lmax_2, product.lmax_out)
    if isinstance(product, ClebschGordanNodes):
        product = _PathsOfDegree(*degrees, product.parity, degree, only_out)
    return SingleDegree(*degrees, product, degree, only_out)
