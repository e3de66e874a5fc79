"""Weights of a tensor product from the length of an edge, through learnable Gaussians (TDN, arXiv:2507.01131)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.dense import Dense, uniform_between
from equijax.nn.layer_norm import LayerNorm


class LearnableGaussians(nn.Module):
    """Normal densities of u = weight · r/rc + bias, [..., G], with σ = |std| + 1e-5.

    Start: `mean` from U(0, 1), `std` from U(1/G, 1), u = r/rc.
    """

    count: int
    cutoff: float

    @nn.compact
    def __call__(self, lengths: jax.Array) -> jax.Array:
        dtype, size = lengths.dtype, (self.count,)
        mean = self.param("mean", nn.initializers.uniform(1.0), size, dtype)
        std = self.param("std", uniform_between(1.0 / self.count, 1.0), size, dtype)
        weight = self.param("weight", nn.initializers.ones, (1,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,), dtype)
        sigma = jnp.abs(std) + 1e-5
        u = lengths[..., None] * (weight / self.cutoff) + bias
        return jnp.exp(-0.5 * ((u - mean) / sigma) ** 2) * ((2 * jnp.pi) ** -0.5 / sigma)


class RadialProfile(nn.Module):
    """[..., G] to [..., F]: Linear, LayerNorm and silu for each hidden width, a linear map without bias, and an offset.

    The offset starts from U(±1/√fan_in) of the last layer.
    """

    hidden: Sequence[int]
    features: int

    @nn.compact
    def __call__(self, basis: jax.Array) -> jax.Array:
        x = basis
        for i, width in enumerate(self.hidden):
            x = jax.nn.silu(LayerNorm(name=f"norm_{i}")(Dense(width, part="radial", name=f"layer_{i}")(x)))
        reach = x.shape[-1] ** -0.5
        offset = self.param("offset", uniform_between(-reach, reach), (self.features,), x.dtype)
        return Dense(self.features, use_bias=False, part="radial", name=f"layer_{len(self.hidden)}")(x) + offset
