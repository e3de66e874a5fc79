"""Layers of TDN that treat all degrees alike (arXiv:2507.01131): one matrix for all, a norm and a gate per degree.

Features are [..., (L+1)², C] with any leading axes, such as atoms or edges; scalars are the first row.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.dense import Dense
from equijax.nn.layer_norm import centred
from equijax.ops.degree_weights import degree_sizes, scale_blocks


def add_to_scalars(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., R, C] with `bias` [..., C] added to the first row."""
    return x + jnp.pad(bias[..., None, :], [*[(0, 0)] * (bias.ndim - 1), (0, x.shape[-2] - 1), (0, 0)])


class SharedLinear(nn.Module):
    """x W with one matrix [C, C'] for every degree, plus a bias on the scalars: `linear/kernel`, `bias`."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Dense(self.features, use_bias=False, name="linear")(x)
        if not self.use_bias:
            return y
        return add_to_scalars(y, self.param("bias", nn.initializers.zeros, (self.features,), x.dtype))


class GatedLinear(nn.Module):
    """A `SharedLinear`, then silu of the scalars and sigmoid of further scalars times all other degrees.

    The maps are the halves of a linear map to 2 C' channels: of the second one only the scalars are needed.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = SharedLinear(self.features, name="values")(x)
        factors = jax.nn.sigmoid(y[..., :1, :])  # silu(y) = y sigmoid(y)
        if x.shape[-2] > 1:
            gates = jax.nn.sigmoid(Dense(self.features, name="gates")(x[..., :1, :]))
            others = jnp.broadcast_to(gates, (*y.shape[:-2], y.shape[-2] - 1, self.features))
            factors = jnp.concatenate([factors, others], axis=-2)
        return y * factors


class DegreeNorm(nn.Module):
    """Every degree over √(mean square over channels and components + ε), the scalars centred over channels first.

    `scale` [lmax+1, C], `bias` [C] on the scalars. Features that vanish stay zero; small ones of degree l > 0, as in
    symmetric places or far from all neighbours, are magnified by up to 1/√ε.
    """

    lmax: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.lmax + 1, x.shape[-1]), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        sizes = degree_sizes(self.lmax)
        scalars, *others = jax.lax.split(x, sizes, axis=x.ndim - 2)
        degrees = [centred(scalars), *others]
        squares = [jnp.mean(degree**2, axis=(-2, -1), keepdims=True) for degree in degrees]
        factors = jax.lax.rsqrt(jnp.concatenate(squares, axis=-2) + self.epsilon) * scale
        return add_to_scalars(scale_blocks(jnp.concatenate(degrees, axis=-2), factors, sizes), bias)
