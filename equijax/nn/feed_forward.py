"""Networks of one atom: on its scalars, and on its equivariant features (EquiformerV2, arXiv:2306.12059, Fig. 1d)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.dense import DegreeDense, Dense
from equijax.nn.separable_activation import AnyFeedForward, GridMLP, published_grid
from equijax.nn.sphere_activation import from_grid, values_on_grid
from equijax.precision import Part


class ScalarNetwork(nn.Module):
    """Linear, silu, linear over the last axis; the last bias can be left out."""

    hidden: int
    features: int
    last_bias: bool = True
    part: Part = "channels"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.silu(Dense(self.hidden, part=self.part, name="first")(x))
        return Dense(self.features, use_bias=self.last_bias, part=self.part, name="second")(x)


class FeedForward(nn.Module):
    """[N, (lmax+1)², C] to `features` channels: a linear map per degree, the activation, another linear map.

    The scalars of the activation are made of the scalars before the first map.
    """

    options: AnyFeedForward
    lmax: int
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if isinstance(self.options, GridMLP):
            scalars = jax.nn.silu(Dense(self.hidden, name="scalars")(x[:, :1]))
            x = DegreeDense(self.hidden, self.lmax, name="first")(x)
            x = jnp.concatenate([scalars, self._on_grid(x, self.options.resolution)[:, 1:]], axis=1)
        else:
            scalars = Dense(self.options.scalar_count(self.lmax, self.hidden), name="scalars")(x[:, 0])
            x = DegreeDense(self.options.signals * self.hidden, self.lmax, name="first")(x)
            x = self.options.nodes(x, scalars, self.lmax)
        return DegreeDense(self.features, self.lmax, name="second")(x)

    def _on_grid(self, x: jax.Array, resolution: int) -> jax.Array:
        grid = published_grid(self.lmax, self.lmax, resolution)
        values = values_on_grid(x, grid)
        for layer in range(3):
            values = Dense(self.hidden, use_bias=False, name=f"grid_{layer}")(
                values if layer == 0 else jax.nn.silu(values)
            )
        return from_grid(values, grid)
