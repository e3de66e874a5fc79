"""Linear maps of equivariant features, in e3nn's parametrisation: raw N(0, 1) weights, factors in the forward pass.

One matrix per degree, stored under the name of the irrep (`0e`, `1o`, ...). Features are [N, (L+1)², C].
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.irreps.layout import degree_slice, irrep_name
from equijax.nn.mixing_product import mixing_product
from equijax.precision import Part

_normal = nn.initializers.normal(1.0)


class IrrepsLinear(nn.Module):
    """y_l = x_l W_l / √C for l = 0..lmax: mixes channels, one [C, C'] matrix per degree."""

    channels_in: int
    channels_out: int
    lmax: int
    part: Part = "channels"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        degrees = []
        for l in range(self.lmax + 1):
            weight = self.param(irrep_name(l), _normal, (self.channels_in, self.channels_out), x.dtype)
            degrees.append(mixing_product(x[:, degree_slice(l)], weight * self.channels_in**-0.5, self.part))
        return jnp.concatenate(degrees, axis=1)


class PathLinear(nn.Module):
    """Mixes the P(l) paths and C channels that reach degree l: y_l = A_l W_l / √(P C).

    Input: one [N, 2l+1, P(l) C] array per degree, path slow; weights [P(l), C, C'].
    """

    path_counts: tuple[int, ...]
    channels_in: int
    channels_out: int

    @nn.compact
    def __call__(self, messages: tuple[jax.Array, ...]) -> jax.Array:
        degrees = []
        for l, (count, message) in enumerate(zip(self.path_counts, messages)):
            shape = (count, self.channels_in, self.channels_out)
            weight = self.param(irrep_name(l), _normal, shape, message.dtype)
            fan_in = count * self.channels_in
            degrees.append(mixing_product(message, weight.reshape(fan_in, self.channels_out) * fan_in**-0.5))
        return jnp.concatenate(degrees, axis=1)


class SpeciesLinear(nn.Module):
    """A matrix per species: y_l = x_l W_l[:, z, :] / √(C Z), e3nn's fully connected product with a one-hot.

    Weights [C, Z, C'] per degree. Only the degrees 0..lmax of the input are used.
    """

    channels_in: int
    channels_out: int
    lmax: int
    num_species: int

    over_sqrt_species: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, species: jax.Array) -> jax.Array:
        degrees = []
        norm = (self.channels_in * self.num_species) ** -0.5
        for l in range(self.lmax + 1):
            shape = (self.channels_in, self.num_species, self.channels_out)
            weight = self.param(irrep_name(l), _normal, shape, x.dtype)
            degrees.append(_per_species(x[:, degree_slice(l)], weight * norm, species))
        return jnp.concatenate(degrees, axis=1)


def _per_species(x: jax.Array, weight: jax.Array, species: jax.Array) -> jax.Array:
    """x [N, m, C] with the matrix of each atom's species, weight [C, Z, C']."""
    num_species = weight.shape[1]
    if num_species <= 8:
        # A matrix product per species and a mask: no [N, C, C'] gather. Beyond a few species the waste dominates.
        one_hot = jax.nn.one_hot(species, num_species, dtype=x.dtype)
        of_species = one_hot[:, None, :, None] * x[:, :, None, :]
        return mixing_product(of_species.reshape(*x.shape[:2], -1), weight.swapaxes(0, 1).reshape(-1, weight.shape[2]))
    return mixing_product(x, weight.swapaxes(0, 1)[species])
