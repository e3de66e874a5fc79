"""Gaunt products by quadrature on the sphere (arXiv:2506.13523): evaluate, multiply point by point, project."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from equijax.config.base import StrictModel
from equijax.ops.gaunt_products import (
    AbstractSphereSignals,
    GauntConvolution,
    GauntNodes,
    GauntPowers,
    stack_degrees,
    unstack_degrees,
)
from equijax.ops.sphere_grid import (
    SphereGrid,
    harmonics_on,
    product_axes,
    product_grid,
    product_shape,
    separable_harmonics,
    smallest_grid,
)
from equijax.ops.tensor_product import EdgeProduct, NodeProduct, PowerProduct

# From this trilinear degree on, separable transforms do not lose to one matrix product (one CPU core, float32).
_SEPARABLE_FROM = 24


@dataclasses.dataclass(frozen=True)
class GridSignals(AbstractSphereSignals):
    """Samples at the points of a quadrature, exact to `degree`.

    `dense` uses the rule of the fewest points and one matrix product per transform; `separable` uses a product grid
    and sums over degrees at every polar angle and order m, then over m at every azimuth. `nb` and `na` are for tests:
    the points of the product grid, instead of the fewest that are exact.
    """

    degree: int
    method: Literal["dense", "separable"] = "dense"
    nb: int | None = None
    na: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Polar and azimuthal points of the product grid."""
        nb, na = product_shape(self.degree)
        return self.nb or nb, self.na or na

    @property
    def grid(self) -> SphereGrid:
        is_product = self.method == "separable" or self.nb is not None or self.na is not None
        return product_grid(*self.shape) if is_product else smallest_grid(self.degree)

    @property
    def sample_count(self) -> int:
        return len(self.grid.weights)

    def basis(self, lmax: int) -> np.ndarray:
        return _grid_harmonics(self, lmax)

    def transform_flops(self, lmax: int) -> int:
        """2 N (L+1)² dense; 2 nb (L+1)² + 2 N (2L+1) separable, with the zeros of l < |m| left out."""
        if self.method == "dense":
            return 2 * self.sample_count * (lmax + 1) ** 2
        return 2 * self.shape[0] * (lmax + 1) ** 2 + 2 * self.sample_count * (2 * lmax + 1)

    def evaluate(self, x: jax.Array, lmax: int) -> jax.Array:
        if self.method == "dense":
            return jnp.einsum("pi,...ic->...pc", _grid_harmonics(self, lmax).astype(x.dtype), x)
        polar, azimuthal = (factor.astype(x.dtype) for factor in separable_harmonics(*self.shape, lmax))
        per_order = jnp.einsum("mbl,...lmc->...bmc", polar, stack_degrees(x, lmax))
        signal = jnp.einsum("am,...bmc->...bac", azimuthal, per_order)
        return signal.reshape(*x.shape[:-2], self.sample_count, x.shape[-1])

    def project(self, signal: jax.Array, lmax: int) -> jax.Array:
        if self.method == "dense":
            weighted = _grid_harmonics(self, lmax) * self.grid.weights[:, None]
            return jnp.einsum("pi,...pc->...ic", weighted.astype(signal.dtype), signal)
        nb, na = self.shape
        polar, azimuthal = separable_harmonics(nb, na, lmax)
        polar = polar * (product_axes(nb, na)[1] / na)[:, None]
        on_grid = signal.reshape(*signal.shape[:-2], nb, na, signal.shape[-1])
        per_order = jnp.einsum("am,...bac->...bmc", azimuthal.astype(signal.dtype), on_grid)
        return unstack_degrees(jnp.einsum("mbl,...bmc->...lmc", polar.astype(signal.dtype), per_order), lmax)


@functools.cache
def _grid_harmonics(signals: GridSignals, lmax: int) -> np.ndarray:
    harmonics = harmonics_on(signals.grid.points, lmax)
    harmonics.setflags(write=False)
    return harmonics


class GauntGrid(StrictModel, EdgeProduct, NodeProduct, PowerProduct):
    """Products of functions on the sphere by exact quadrature (arXiv:2506.13523); couplings of even l1 + l2 + l3."""

    name: Literal["gaunt_grid"] = "gaunt_grid"
    method: Literal["auto", "dense", "separable"] = "auto"
    """How samples are computed: dense, one matrix product; separable, polar angle and azimuth in turn, which costs
    less at high degrees; auto, the faster one. The results are the same."""

    def _signals(self, degree: int) -> GridSignals:
        if self.method == "auto":
            return GridSignals(degree, "separable" if degree >= _SEPARABLE_FROM else "dense")
        return GridSignals(degree, self.method)

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> GauntConvolution:
        return GauntConvolution(lmax_in, lmax_edge, lmax_out, self._signals(lmax_in + lmax_edge + lmax_out))

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> GauntNodes:
        return GauntNodes(lmax_1, lmax_2, lmax_out, self._signals(lmax_1 + lmax_2 + lmax_out))

    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> GauntPowers:
        return GauntPowers(lmax_in, lmax_out, correlation, self._signals(correlation * lmax_in + lmax_out))
