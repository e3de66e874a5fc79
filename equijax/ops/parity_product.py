"""The product of two features of natural parity with all its couplings, also those of the other parity.

The coupling (l1, l2, l) has parity (-1)^(l1+l2): natural when l1 + l2 + l is even. Blocks between orbitals need both:
the p-d block holds 1o, 3o and 2o. Results are [..., rows, C] with the degrees 0..L of natural parity, as in
`equijax.irreps.layout`, followed by the degrees 1..L-1 of the other one (0 and L of it occur in no block between
orbitals of degree L/2 and less).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax.ops.clebsch_gordan import scaled_coupling
from equijax.ops.degree_weights import degree_sizes


class ParityBlock(NamedTuple):
    """Rows of one degree and parity."""

    l: int
    is_natural: bool


class ParityPath(NamedTuple):
    """One coupling of two features to a block."""

    l_1: int
    l_2: int
    block: ParityBlock


def parity_blocks(lmax: int) -> tuple[ParityBlock, ...]:
    """The blocks of a result, in order: 0e 1o 2e 3o 4e 1e 2o 3e for lmax 4."""
    return (*(ParityBlock(l, True) for l in range(lmax + 1)), *(ParityBlock(l, False) for l in range(1, lmax)))


def parity_sizes(lmax: int) -> tuple[int, ...]:
    """Rows of every block."""
    return tuple(2 * block.l + 1 for block in parity_blocks(lmax))


@functools.cache
def parity_paths(lmax: int) -> tuple[ParityPath, ...]:
    """All couplings of degrees 0..lmax, block after block: 59 for lmax 4, 42 of them to natural parity."""
    return tuple(
        ParityPath(l1, l2, block)
        for block in parity_blocks(lmax)
        for l1 in range(lmax + 1)
        for l2 in range(lmax + 1)
        if abs(l1 - l2) <= block.l <= l1 + l2 and ((l1 + l2 + block.l) % 2 == 0) == block.is_natural
    )


@dataclasses.dataclass(frozen=True)
class ParityProduct:
    """x ⊗ y, channel by channel, over the couplings at the positions `kept` of `parity_paths`; None: over all.

    For every pair of degrees the outer product of their rows, of all atoms or pairs and channels at once, is multiplied
    by one constant matrix.
    """

    lmax: int
    kept: tuple[int, ...] | None = None

    @property
    def paths(self) -> tuple[ParityPath, ...]:
        paths = parity_paths(self.lmax)
        return paths if self.kept is None else tuple(paths[i] for i in self.kept)

    @property
    def path_count(self) -> int:
        return len(self.paths)

    def flops(self) -> int:
        """Multiplications and additions of one product of one channel."""
        pairs = {(p.l_1, p.l_2) for p in self.paths}
        outer = sum((2 * l1 + 1) * (2 * l2 + 1) for l1, l2 in pairs)
        return outer + sum(2 * (2 * p.block.l + 1) * ((2 * p.l_1 + 1) * (2 * p.l_2 + 1) + 1) for p in self.paths)

    def block_indices(self) -> np.ndarray:
        """[P] position of the block that each path ends in."""
        blocks = parity_blocks(self.lmax)
        return np.array([blocks.index(path.block) for path in self.paths])

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """x and y [M, (lmax+1)², C], weights [M, P, C] or [1, P, C]; returns [M, sum of parity_sizes, C].

        Not divided by the number of paths: unit variance per path for N(0, 1) input.
        """
        rows, channels = x.shape[0], x.shape[2]
        # Rows of components first, so that the matrix products have all atoms and channels as columns.
        xs = jax.lax.split(jnp.swapaxes(x, 0, 1), degree_sizes(self.lmax))
        ys = jax.lax.split(jnp.swapaxes(y, 0, 1), degree_sizes(self.lmax))
        ws = jax.lax.split(jnp.swapaxes(weights, 0, 1), (1,) * self.path_count)
        sums: dict[ParityBlock, jax.Array] = {}
        for (l1, l2), members in self._by_degrees().items():
            q = (2 * l1 + 1) * (2 * l2 + 1)
            outer = (xs[l1][:, None] * ys[l2][None, :]).reshape(q, rows * channels)
            degrees = [self.paths[i].block.l for i in members]
            matrix = np.concatenate([scaled_coupling(l1, l2, l).reshape(q, 2 * l + 1).T for l in degrees])
            coupled = (matrix.astype(x.dtype) @ outer).reshape(-1, rows, channels)
            for i, part in zip(members, jax.lax.split(coupled, tuple(2 * l + 1 for l in degrees))):
                block, term = self.paths[i].block, part * ws[i]
                sums[block] = sums[block] + term if block in sums else term
        blocks = [
            sums[block] if block in sums else jnp.zeros((2 * block.l + 1, rows, channels), x.dtype)
            for block in parity_blocks(self.lmax)
        ]
        return jnp.swapaxes(jnp.concatenate(blocks), 0, 1)

    def _by_degrees(self) -> dict[tuple[int, int], list[int]]:
        """Positions in `paths` of those that share the degrees of both factors."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, path in enumerate(self.paths):
            groups.setdefault((path.l_1, path.l_2), []).append(i)
        return groups


def kept_count(num_paths: int, num_blocks: int, sparsity: float) -> int:
    """Paths that a gate keeps: the integer part of their share, but one for each block at least.

    >>> kept_count(65, 8, 0.7), kept_count(175, 12, 0.7)
    (19, 52)
    """
    return max(int((1 - sparsity) * num_paths), num_blocks)


def strongest_paths(scores: jax.Array, lmax: int, count: int) -> jax.Array:
    """Positions [count] of the paths of largest scores [P]; the best one of every block is always among them, so that
    no degree of a result is left without any."""
    block_of = ParityProduct(lmax).block_indices()
    scores = scores - jnp.min(scores)
    best = [positions[jnp.argmax(scores[positions])] for positions in _positions(block_of)]
    scores = scores.at[jnp.stack(best)].add(1.0 + jnp.max(scores))
    return jax.lax.top_k(scores, count)[1]


def _positions(block_of: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(np.flatnonzero(block_of == b)) for b in range(block_of.max() + 1)]


def normalized_gate(gate: jax.Array, product: ParityProduct) -> jax.Array:
    """gate [P] over the root of the sum of squares of the gates that end in the same block."""
    block_of = product.block_indices()
    same = (block_of[:, None] == block_of[None, :]).astype(gate.dtype)
    return gate * jax.lax.rsqrt(same @ gate**2 + 1e-12)
