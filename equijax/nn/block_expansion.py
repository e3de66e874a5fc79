"""From features to blocks between orbitals: the Wigner-Eckart theorem with weights that depend on the elements.

The block of shells u of degree l1 and v of degree l2 is

    B_uv[i, j] = sum_L sum_k √(2L+1) w3j[i, j, k] X_uv^L[k],    X_uv^L = sum_c W_c,uv^L f_c^L,

with features f of natural parity where l1 + l2 + L is even and of the other one where it is odd. Exchange of the atoms
must transpose the block. w3j goes over into (-1)^(l1+l2+L) times itself and an odd channel into minus itself, so
W_c,uv(A, B) = ± W_c,vu(B, A) with the product of the two signs: the weights are symmetrised once per pair of elements.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.wigner_3j import wigner_3j
from equijax.nn.dense import Dense
from equijax.ops.parity_product import ParityBlock, parity_blocks, parity_sizes

# Of the variance of the last layer: a fresh model predicts little beside the scale of the data.
_SMALL = 1e-2


def shell_pairs(degrees: tuple[int, ...], block: ParityBlock) -> tuple[tuple[int, int], ...]:
    """The ordered pairs of shells (u, v) whose block holds this degree and parity, in the order of their degrees.

    56 for all L together of 3 s, 2 p and 1 d shells; 317 of 5 s, 5 p, 2 d and 1 f.
    """
    pairs = [
        (u, v)
        for u, l1 in enumerate(degrees)
        for v, l2 in enumerate(degrees)
        if abs(l1 - l2) <= block.l <= l1 + l2 and ((l1 + l2 + block.l) % 2 == 0) == block.is_natural
    ]
    return tuple(sorted(pairs, key=lambda pair: (degrees[pair[0]], degrees[pair[1]])))


def _exchange(degrees: tuple[int, ...]) -> np.ndarray:
    """[n] the position of (v, u) for every (u, v), block after block."""
    positions: list[int] = []
    for block in parity_blocks(2 * max(degrees)):
        pairs = shell_pairs(degrees, block)
        start = len(positions)
        positions += [start + pairs.index((v, u)) for u, v in pairs]
    return np.array(positions)


class ElementWeights(nn.Module):
    """W [Z, Z, C, n] for pairs of elements; the diagonal is that of an atom with itself.

    n counts the (u, v) of all blocks of `parity_blocks`; the first `even` channels are even under exchange.
    """

    degrees: tuple[int, ...]
    channels: int
    even: int
    num_species: int
    hidden: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        z, exchange = self.num_species, _exchange(self.degrees)
        blocks = parity_blocks(2 * max(self.degrees))
        naturals = np.repeat([b.is_natural for b in blocks], [len(shell_pairs(self.degrees, b)) for b in blocks])
        table = jnp.asarray(self.param("species", nn.initializers.normal(1.0), (z, self.hidden), dtype))
        ends = [Dense(self.hidden, use_bias=False, name=name)(table) for name in ("first", "second")]
        values = jax.nn.silu(ends[0][:, None] + ends[1][None, :])
        small = nn.initializers.variance_scaling(_SMALL, "fan_in", "normal")
        kernel = self.param("kernel", small, (self.hidden, self.channels * len(exchange)), dtype)
        bias = self.param("bias", nn.initializers.normal(_SMALL**0.5), (self.channels * len(exchange),), dtype)
        raw = (values @ kernel + bias).reshape(z, z, self.channels, len(exchange))
        signs = np.where(np.arange(self.channels) < self.even, 1.0, -1.0)[:, None] * np.where(naturals, 1.0, -1.0)
        return (raw + signs.astype(dtype) * raw.swapaxes(0, 1)[..., exchange]) * (2 * self.channels) ** -0.5


def blocks_of(features: jax.Array, weights: jax.Array, degrees: tuple[int, ...]) -> jax.Array:
    """features [M, sum of parity_sizes, C] and the weights of each row [M, C, n] to blocks [M, S, S]."""
    lmax, count = 2 * max(degrees), features.shape[0]
    blocks = parity_blocks(lmax)
    numbers = [len(shell_pairs(degrees, block)) for block in blocks]
    by_degrees: dict[tuple[int, int], list[tuple[int, jax.Array]]] = {}
    split_features = jax.lax.split(features, parity_sizes(lmax), axis=1)
    split_weights = jax.lax.split(weights, tuple(numbers), axis=2)
    for block, f, w in zip(blocks, split_features, split_weights):
        x = jnp.einsum("mkc,mcn->mkn", f, w)
        groups = [(degrees[u], degrees[v]) for u, v in shell_pairs(degrees, block)]
        for l1, l2 in dict.fromkeys(groups):
            start = groups.index((l1, l2))
            part = x[:, :, start : start + groups.count((l1, l2))]
            by_degrees.setdefault((l1, l2), []).append((block.l, part))

    rows = []
    distinct = tuple(dict.fromkeys(degrees))
    for l1 in distinct:
        row = []
        for l2 in distinct:
            parts = by_degrees[l1, l2]
            matrix = _expansion(l1, l2, tuple(l for l, _ in parts)).astype(features.dtype)
            n1, n2 = degrees.count(l1), degrees.count(l2)
            x = jnp.concatenate([part for _, part in parts], axis=1)
            shells = jnp.einsum("qk,mkn->mqn", matrix, x).reshape(count, 2 * l1 + 1, 2 * l2 + 1, n1, n2)
            row.append(shells.transpose(0, 3, 1, 4, 2).reshape(count, n1 * (2 * l1 + 1), n2 * (2 * l2 + 1)))
        rows.append(jnp.concatenate(row, axis=2))
    return jnp.concatenate(rows, axis=1)


@functools.cache
def _expansion(l1: int, l2: int, ls: tuple[int, ...]) -> np.ndarray:
    """The orthogonal matrix [(2l1+1)(2l2+1), sum of 2L+1] of √(2L+1) w3j."""
    columns = [np.sqrt(2 * l + 1) * wigner_3j(l1, l2, l).reshape(-1, 2 * l + 1) for l in ls]
    return np.concatenate(columns, axis=1)
