"""SPHNet's and QHNet's pair construction: features of every atom with itself and of every pair, from those of atoms.

Pairs are computed once, for i before j, and must not depend on which is which. So nothing sees i and j but as sums and
differences of what both give, even and odd under their exchange, and harmonics of r_i - r_j, of sign (-1)^l:

    left ⊗ right in half of the channels even (+ ⊗ + and - ⊗ -), in the other odd (+ ⊗ -), with even weights.

The two together span u_i ⊗ v_j ± u_j ⊗ v_i and the products of each atom with itself. Features of pairs keep even
channels first (`equijax.nn.parity_layers`); those of an atom with itself are all even.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.pair_list import PairList
from equijax.nn.dense import Dense
from equijax.nn.pair_gate import into_pairs, keep_pairs
from equijax.nn.parity_layers import BlockDense, NormGate
from equijax.nn.receiver_blocks import over_receivers
from equijax.nn.spherical_interaction import invariants_of
from equijax.ops.degree_weights import degree_sizes, scale_blocks
from equijax.ops.parity_product import (
    ParityProduct,
    kept_count,
    normalized_gate,
    parity_blocks,
    parity_sizes,
    strongest_paths,
)

_normal = nn.initializers.normal(1.0)


class PathGate(NamedTuple):
    """Options of the sparse tensor-product gate: the share of paths left out, and the paths of the fixed phase."""

    sparsity: float
    kept: tuple[int, ...] | None

    def product(self, lmax: int) -> ParityProduct:
        return ParityProduct(lmax, self.kept if self.sparsity > 0 else None)


class PathFactors(nn.Module):
    """One factor per path [P], of unit sum of squares in every block; the learnt ones are `gate` [P], from one.

    Zero for the paths that are left out: all but a random choice when there is a key, else all but the strongest.
    """

    options: PathGate
    lmax: int

    @nn.compact
    def __call__(self, key: jax.Array | None, dtype: jax.typing.DTypeLike) -> jax.Array:
        product = self.options.product(self.lmax)
        if self.options.sparsity == 0:
            return normalized_gate(jnp.ones(product.path_count, dtype), product)
        gate = self.param("gate", nn.initializers.ones, (product.path_count,), dtype)
        if self.options.kept is not None:
            return normalized_gate(gate, product)
        count = kept_count(product.path_count, len(parity_blocks(self.lmax)), self.options.sparsity)
        scores = jnp.abs(gate) if key is None else jax.random.uniform(key, gate.shape, dtype)
        kept = jnp.zeros_like(gate).at[strongest_paths(jax.lax.stop_gradient(scores), self.lmax, count)].set(1.0)
        return normalized_gate(gate * kept, product)


class SelfPaths(nn.Module):
    """Weights of the paths of an atom with itself, `weight` [P, C], times their factors."""

    options: PathGate
    lmax: int
    channels: int

    @nn.compact
    def __call__(self, key: jax.Array | None, dtype: jax.typing.DTypeLike) -> jax.Array:
        factors = PathFactors(self.options, self.lmax, name="factors")(key, dtype)
        weight = self.param("weight", _normal, (factors.shape[0], self.channels), dtype)
        return weight * factors[:, None]


class PairPaths(nn.Module):
    """The last layers of the networks of distance and invariants, `radial` and `invariant` [H, P, C], biases [P, C]."""

    options: PathGate
    lmax: int
    channels: int
    hidden: int

    @nn.compact
    def __call__(self, key: jax.Array | None, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, ...]:
        factors = PathFactors(self.options, self.lmax, name="factors")(key, dtype)
        shape = (factors.shape[0], self.channels)
        kernel = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=0, out_axis=(1, 2))
        radial = self.param("radial", kernel, (self.hidden, *shape), dtype)
        radial_bias = self.param("radial_bias", _normal, shape, dtype)
        invariant = self.param("invariant", kernel, (self.hidden, *shape), dtype)
        invariant_bias = self.param("invariant_bias", nn.initializers.ones, shape, dtype)
        return radial * factors[:, None], radial_bias * factors[:, None], invariant, invariant_bias


PATH_AXES = {"gate": 0, "weight": 0, "radial": 1, "radial_bias": 0, "invariant": 1, "invariant_bias": 0}
"""The axis of the paths in the parameters of `PathFactors`, `SelfPaths` and `PairPaths`."""


class SelfLayer(nn.Module):
    """x [N, (L+1)², C] of atoms to what is added to their features with themselves [N, sum of parity_sizes(L), C]."""

    channels: int
    lmax: int
    options: PathGate

    @nn.compact
    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        sizes, channels = degree_sizes(self.lmax), self.channels
        gated = NormGate(sizes, name="gate")(x)
        u, v = jnp.split(BlockDense(2 * channels, sizes, name="factors")(gated), 2, axis=-1)
        weights = SelfPaths(self.options, self.lmax, channels, name="paths")(key, x.dtype)
        product = self.options.product(self.lmax)
        temporary = x.shape[0] * channels * sum(sizes) ** 2 * x.dtype.itemsize
        features = over_receivers(lambda uv: product.apply(uv[0], uv[1], weights[None]), (u, v), temporary)
        features = features + _padded(x, features.shape[1])
        sizes = parity_sizes(self.lmax)
        return BlockDense(channels, sizes, name="out")(NormGate(sizes, name="gate_out")(features))


class PairLayer(nn.Module):
    """x [N, (L+1)², C] of atoms to what is added to the features of pairs [P, sum of parity_sizes(L), C].

    With `pair_sparsity` above zero only the best pairs of every molecule are computed; the others get nothing.
    """

    channels: int
    lmax: int
    hidden: int
    options: PathGate
    pair_sparsity: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        pairs: PairList,
        basis: jax.Array,
        harmonics: jax.Array,
        num_graphs: int,
        key: jax.Array | None,
    ) -> jax.Array:
        sizes, channels, even = degree_sizes(self.lmax), self.channels, self.channels // 2
        first, second = jnp.asarray(pairs.first), jnp.asarray(pairs.second)
        reduced = BlockDense(self.hidden, sizes, name="reduce")(x)
        one, two = reduced[first], reduced[second]
        inner = invariants_of(one, two, self.lmax)
        invariants = jnp.concatenate([0.5 * (one[:, 0] + two[:, 0]), *inner], axis=-1)
        kept = None
        if self.pair_sparsity > 0:
            kept = keep_pairs(
                Dense(1, use_bias=False, name="score")(invariants)[:, 0], pairs, num_graphs, self.pair_sparsity
            )
            first, second, basis, harmonics, invariants = (
                array[kept.rows] for array in (first, second, basis, harmonics, invariants)
            )

        gated = NormGate(sizes, name="gate")(x)
        of_atoms = BlockDense(3 * channels, sizes, name="factors")(gated)
        # Signs under exchange of the three parts: left and right factor, and what is carried past the product.
        half = even // 2
        left = np.concatenate([np.ones(half), -np.ones(even - half), np.ones(channels - even)])
        right = np.concatenate([np.ones(half), -np.ones(channels - half)])
        past = np.concatenate([np.ones(even), -np.ones(channels - even)])
        signs = np.concatenate([left, right, past])
        joined = of_atoms[first] + signs.astype(x.dtype) * of_atoms[second]
        hidden = jax.nn.silu(Dense(self.hidden, name="bond_0")(jnp.concatenate([basis, invariants], axis=-1)))
        bond = Dense((self.lmax + 1) * 3 * channels, name="bond_1")(hidden).reshape(-1, self.lmax + 1, 3 * channels)
        allowed = np.where(np.arange(self.lmax + 1)[:, None] % 2 == 0, signs > 0, signs < 0)
        along = jnp.broadcast_to(harmonics[..., None], (*harmonics.shape, 3 * channels))
        joined = joined * 0.5**0.5 + scale_blocks(along, bond * allowed.astype(x.dtype), sizes)

        radial_in = jax.nn.silu(Dense(self.hidden, name="radial_0")(basis))
        invariant_in = jax.nn.silu(Dense(self.hidden, name="invariant_0")(invariants))
        paths = PairPaths(self.options, self.lmax, channels, self.hidden, name="paths")(key, x.dtype)
        radial, radial_bias, invariant, invariant_bias = paths
        product = self.options.product(self.lmax)

        def block(arrays: tuple[jax.Array, ...]) -> jax.Array:
            joined, radial_in, invariant_in = arrays
            weights = jnp.tensordot(radial_in, radial, 1) + radial_bias
            weights = weights * (jnp.tensordot(invariant_in, invariant, 1) + invariant_bias)
            left, right, past = jnp.split(joined, 3, axis=-1)
            features = product.apply(left, right, weights)
            return features + _padded(past, features.shape[1])

        temporary = joined.shape[0] * channels * sum(sizes) ** 2 * x.dtype.itemsize
        features = over_receivers(block, (joined, radial_in, invariant_in), temporary)
        sizes = parity_sizes(self.lmax)
        features = NormGate(sizes, groups=2, name="gate_out")(features)
        features = BlockDense(channels, sizes, groups=2, name="out")(features)
        return features if kept is None else into_pairs(features, kept)


def _padded(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, 0)))
