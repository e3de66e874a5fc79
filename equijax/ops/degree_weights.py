"""Features with one weight per block of rows, such as one per degree."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def degree_sizes(lmax: int) -> tuple[int, ...]:
    """Rows of every degree: 1, 3, 5, ..."""
    return tuple(2 * l + 1 for l in range(lmax + 1))


def scale_blocks(x: jax.Array, weights: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Row blocks of x [..., sum(sizes), C], each times its weight of [..., len(sizes), C].

    Split, multiplied and put together again: no gather, whose derivative would be a scatter.
    """
    blocks = jax.lax.split(x, sizes, axis=x.ndim - 2)
    factors = jax.lax.split(weights, (1,) * len(sizes), axis=weights.ndim - 2)
    return jnp.concatenate([block * factor for block, factor in zip(blocks, factors)], axis=-2)
