"""Activations of equivariant features: pointwise on a grid of the sphere, and gates.

Coefficients stand for the signal f(r) = sum_lm x_lm Y_lm(r). A function of its values on a grid, taken back to
coefficients, is equivariant as far as the grid integrates what it has made: a product of two signals exactly on a grid
of `exact_grid`, silu and the like never, only better with more points. Gates multiply whole degrees and are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.nn.edge_frame import Parts
from equijax.ops.sphere_grid import harmonics_on, product_grid

Normalization = Literal["integral", "component"]


class GridMatrices(NamedTuple):
    """`to_grid` [P, R] from coefficients of R components to values on P points, `from_grid` [R, P] back."""

    to_grid: np.ndarray
    from_grid: np.ndarray

    def rows(self, components: np.ndarray) -> GridMatrices:
        """For these components l² + l + m only, in this order."""
        return _read_only(self.to_grid[:, components], self.from_grid[components])


def _read_only(to_grid: np.ndarray, from_grid: np.ndarray) -> GridMatrices:
    for matrix in (to_grid, from_grid):
        matrix.setflags(write=False)
    return GridMatrices(to_grid, from_grid)


@functools.cache
def soft_grid(lmax: int, latitudes: int, longitudes: int, normalization: Normalization) -> GridMatrices:
    """The grid of eSCN and EquiformerV2, e3nn's `ToS2Grid` and `FromS2Grid`; β slow and α fast.

    β_i = (i + 1/2) π / latitudes, an even number >= 2 (lmax + 1), with the weights of Kostelec and Rockmore
    (J. Fourier Anal. Appl. 14, 145, 2008), and α_j = 2π j / longitudes. Normalization integral takes Y with
    ∫ Y² = 1, component takes Y / √((2l+1)(lmax+1)) with a mean of Y² of 2l+1 (the values have unit variance).
    """
    if latitudes % 2 or latitudes < 2 * (lmax + 1):
        raise ValueError(f"soft_grid: {latitudes} latitudes; expected an even number >= {2 * (lmax + 1)}")
    beta = (np.arange(latitudes) + 0.5) * np.pi / latitudes
    alpha = 2 * np.pi * np.arange(longitudes) / longitudes
    odd = np.arange(1, latitudes, 2)
    weights = 2 / latitudes * np.sin(beta) * (np.sin(np.outer(beta, odd)) / odd).sum(1) / longitudes
    sine, ones = np.sin(beta), np.ones(longitudes)
    points = np.stack(
        [np.outer(sine, np.sin(alpha)), np.outer(np.cos(beta), ones), np.outer(sine, np.cos(alpha))], axis=-1
    )
    harmonics = harmonics_on(points.reshape(-1, 3), lmax)
    quadrature = harmonics.T * np.repeat(weights, longitudes)
    if normalization == "integral":
        factors = np.full(len(quadrature), (4 * np.pi) ** -0.5)
    else:
        factors = (_per_component(2 * np.arange(lmax + 1) + 1.0) * (lmax + 1)) ** -0.5
    return _read_only(harmonics * factors, quadrature / factors[:, None])


def rescaled(matrices: GridMatrices, lmax: int, mmax: int) -> GridMatrices:
    """Both ways with √((2l+1) / (2 mmax+1)) at degrees l > mmax, as EquiformerV2 does for truncated features."""
    degrees = np.arange(lmax + 1)
    factors = _per_component(np.where(degrees > mmax, np.sqrt((2 * degrees + 1) / (2 * mmax + 1)), 1.0))
    return _read_only(matrices.to_grid * factors, matrices.from_grid * factors[:, None])


@functools.cache
def exact_grid(lmax: int, mmax: int) -> GridMatrices:
    """The product grid with the fewest points on which products of two signals are exact, component normalised.

    Signals, and what is kept of the product, have degrees <= lmax and orders |m| <= mmax. Rows are the full (lmax+1)².
    """
    grid = product_grid(3 * lmax // 2 + 1, 3 * mmax + 1)
    harmonics = harmonics_on(grid.points, lmax)
    factors = (_per_component(2 * np.arange(lmax + 1) + 1.0) * (lmax + 1)) ** -0.5
    return _read_only(harmonics * factors, harmonics.T * grid.weights / factors[:, None])


def _per_component(per_degree: np.ndarray) -> np.ndarray:
    return np.repeat(per_degree, 2 * np.arange(len(per_degree)) + 1)


def values_on_grid(x: jax.Array, grid: GridMatrices) -> jax.Array:
    """[..., R, C] to [..., P, C]."""
    return jnp.einsum("pr,...rc->...pc", jnp.asarray(grid.to_grid, x.dtype), x)


def from_grid(values: jax.Array, grid: GridMatrices) -> jax.Array:
    """[..., P, C] to [..., R, C]."""
    return jnp.einsum("rp,...pc->...rc", jnp.asarray(grid.from_grid, values.dtype), values)


def pointwise(function: Callable[..., jax.Array], grid: GridMatrices, *signals: jax.Array) -> jax.Array:
    """A function of the values of signals [..., R, C] at each point, as coefficients again."""
    return from_grid(function(*(values_on_grid(x, grid) for x in signals)), grid)


def gate(x: jax.Array, gates: jax.Array, lmax: int) -> jax.Array:
    """silu of the scalars and sigmoid(gates) times the rest: [N, (lmax+1)², C] with `gates` [N, lmax C], l slow."""
    factors = jax.nn.sigmoid(gates).reshape(gates.shape[0], lmax, x.shape[-1])
    degrees = [x[:, degree_slice(l)] * factors[:, l - 1 : l] for l in range(1, lmax + 1)]
    return jnp.concatenate([jax.nn.silu(x[:, :1]), *degrees], axis=1)


def gate_parts(parts: Parts, gates: jax.Array, channels: int) -> Parts:
    """The same in the frame of the edge: `parts` as in `edge_frame`, `gates` [N, K, lmax C]."""
    factors = jax.nn.sigmoid(gates)[:, :, None]
    scalars, others = jnp.split(parts[0], [channels], axis=-1)
    first = jnp.concatenate([jax.nn.silu(scalars), others * factors], axis=-1)
    return (first, *(part * factors[..., m * channels :] for m, part in enumerate(parts[1:])))
