"""Layers on features of several degrees and parities, [M, rows, C] in blocks of `sizes` rows, scalars first.

Features of a pair of atoms also have a sign under exchange of the two: with `groups` 2 the first half of the channels
is even and the second one odd. Nothing mixes them, and what must be invariant takes odd scalars by their magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.degree_layers import add_to_scalars
from equijax.nn.dense import Dense
from equijax.ops.degree_weights import scale_blocks

_NORM_EPSILON = 1e-8

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0, 1))


class BlockDense(nn.Module):
    """A kernel per block and group, `kernel` [blocks, groups, C, C'], and a `bias` [C'] on even scalars."""

    features: int
    sizes: tuple[int, ...]
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, inputs, outputs = self.groups, x.shape[-1] // self.groups, self.features // self.groups
        kernel = self.param("kernel", _uniform, (len(self.sizes), groups, inputs, outputs), x.dtype)
        halves = [
            jnp.concatenate([block @ kernel[i, group] for i, block in enumerate(self._blocks(half))], axis=1)
            for group, half in enumerate(jnp.split(x, groups, axis=-1))
        ]
        bias = self.param("bias", nn.initializers.zeros, (outputs,), x.dtype)
        halves[0] = add_to_scalars(halves[0], bias)
        return jnp.concatenate(halves, axis=-1)

    def _blocks(self, x: jax.Array) -> Sequence[jax.Array]:
        return jax.lax.split(x, self.sizes, axis=1)


class NormGate(nn.Module):
    """A network of the scalars and norms gives the new even scalars, and factors of everything else."""

    sizes: tuple[int, ...]
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        blocks, channels = len(self.sizes), x.shape[-1]
        even = channels // self.groups
        squares = [jnp.sum(block**2, axis=1) for block in jax.lax.split(x, self.sizes, axis=1)]
        norms = jnp.sqrt(jnp.concatenate(squares, axis=1) + _NORM_EPSILON)
        invariants = jnp.concatenate([x[:, 0, :even], norms[:, even:]], axis=1)
        values = Dense(blocks * channels, name="out")(jax.nn.silu(Dense(channels, name="hidden")(invariants)))
        values = values.reshape(-1, blocks, channels)
        scaled = scale_blocks(x, 1.0 + values, self.sizes)
        scalars = jnp.concatenate([values[:, :1, :even], scaled[:, :1, even:]], axis=2)
        return jnp.concatenate([scalars, scaled[:, 1:]], axis=1)
