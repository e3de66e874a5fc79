"""Activations whose scalars come from separate scalars, for features and for their parts in the frame of an edge.

Each takes `signals` x C channels and `scalar_count` scalars and gives C channels (EquiformerV2, arXiv:2306.12059,
Sec. 4.3: what the grid does to l = 0 is replaced by silu of the scalars, and only l > 0 comes from the grid).
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.config.base import StrictModel, spelt_out
from equijax.nn.edge_frame import Parts, m_primary_rows, split_parts, stack_parts
from equijax.nn.sphere_activation import GridMatrices, exact_grid, gate, gate_parts, pointwise, rescaled, soft_grid

Resolution = Annotated[int, pydantic.Field(ge=2, le=200, multiple_of=2)]


class Gate(StrictModel):
    """silu of l = 0, and sigmoid of a scalar per degree and channel times l > 0. Exactly equivariant."""

    name: Literal["gate"] = "gate"

    @property
    def signals(self) -> int:
        return 1

    @property
    def mixes_orders(self) -> bool:
        """Components of order m of the result depend on other orders."""
        return False

    def scalar_count(self, lmax: int, channels: int) -> int:
        return lmax * channels

    def edges(self, parts: Parts, scalars: jax.Array, lmax: int, channels: int) -> Parts:
        """Parts of degrees up to `lmax`, `scalars` [N, K, scalar_count]."""
        return gate_parts(parts, scalars, channels)

    def nodes(self, x: jax.Array, scalars: jax.Array, lmax: int) -> jax.Array:
        """Features [N, (lmax+1)², C], `scalars` [N, scalar_count]."""
        return gate(x, scalars, lmax)


class _OnGrid(StrictModel):
    """silu of the scalars, and l > 0 from a function of the values on a grid."""

    @property
    def mixes_orders(self) -> bool:
        return True

    def scalar_count(self, lmax: int, channels: int) -> int:
        return channels

    def edges(self, parts: Parts, scalars: jax.Array, lmax: int, channels: int) -> Parts:
        mmax = len(parts) - 1
        rows = stack_parts(parts, lmax)
        grid = self._grid(lmax, mmax).rows(m_primary_rows(lmax, mmax))
        return split_parts(self._with_scalars(self._on_grid(rows, grid), scalars), lmax, mmax)

    def nodes(self, x: jax.Array, scalars: jax.Array, lmax: int) -> jax.Array:
        return self._with_scalars(self._on_grid(x, self._grid(lmax, lmax)), scalars)

    def _with_scalars(self, x: jax.Array, scalars: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.nn.silu(scalars)[..., None, :], x[..., 1:, :]], axis=-2)

    def _grid(self, lmax: int, mmax: int) -> GridMatrices:
        raise NotImplementedError

    def _on_grid(self, x: jax.Array, grid: GridMatrices) -> jax.Array:
        raise NotImplementedError


class ExactGrid(_OnGrid):
    """The product of two signals, on a grid that is exact for it: the Gaunt product. Exactly equivariant."""

    name: Literal["exact_grid"] = "exact_grid"

    @property
    def signals(self) -> int:
        return 2

    def _grid(self, lmax: int, mmax: int) -> GridMatrices:
        return exact_grid(lmax, mmax)

    def _on_grid(self, x: jax.Array, grid: GridMatrices) -> jax.Array:
        return pointwise(operator.mul, grid, *jnp.split(x, 2, axis=-1))


class SeparableS2(_OnGrid):
    """silu of the signal on `resolution` x `resolution` points, as published. Equivariant up to the aliasing."""

    name: Literal["separable_s2"] = "separable_s2"
    resolution: Resolution = 18
    """Points along each angle, an even number of at least 2 (lmax + 1)."""

    @property
    def signals(self) -> int:
        return 1

    def _grid(self, lmax: int, mmax: int) -> GridMatrices:
        return published_grid(lmax, mmax, self.resolution)

    def _on_grid(self, x: jax.Array, grid: GridMatrices) -> jax.Array:
        return pointwise(jax.nn.silu, grid, x)


class GridMLP(StrictModel):
    """A network of three layers on every point of the grid, as published. Equivariant up to the aliasing."""

    name: Literal["grid_mlp"] = "grid_mlp"
    resolution: Resolution = 18
    """Points along each angle, an even number of at least 2 (lmax + 1)."""


@functools.cache
def published_grid(lmax: int, mmax: int, resolution: int) -> GridMatrices:
    """The grid of EquiformerV2; degrees above mmax are scaled up for the orders that they lack."""
    return rescaled(soft_grid(lmax, resolution, resolution, "component"), lmax, mmax)


def silu_error(lmax: int, resolution: int) -> float:
    """How far silu on the grid of `resolution` is from equivariant, relative to its l > 0 result.

    For one signal of unit variance, rows of one turn about the x axis compared; an estimate for `limits`.
    """
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(lmax + 1) ** 2)
    grid, fine = (soft_grid(lmax, r, r, "component") for r in (resolution, 4 * resolution))
    coarse, exact = (g.from_grid @ _silu(g.to_grid @ signal) for g in (grid, fine))
    return float(np.linalg.norm((coarse - exact)[1:]) / np.linalg.norm(exact[1:]))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


_BY_NAME = (pydantic.Field(discriminator="name"), pydantic.BeforeValidator(spelt_out))
AnyActivation = Annotated[Gate | ExactGrid | SeparableS2, *_BY_NAME]
AnyFeedForward = Annotated[Gate | ExactGrid | SeparableS2 | GridMLP, *_BY_NAME]
