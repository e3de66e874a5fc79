"""A function of rows, block by block of them: one after another, each compiled once for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_row_blocks(function: Callable[[Any], Any], arrays: Any, rows: int) -> Any:
    """function(arrays) in blocks of `rows` rows, the last one padded with zeros.

    Arrays and results, nested as they may be, have one row each along their first axis.
    """
    num_rows = jax.tree.leaves(arrays)[0].shape[0]
    num_blocks = -(-num_rows // rows)
    padding = num_blocks * rows - num_rows

    def into_blocks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, padding), *((0, 0),) * (array.ndim - 1)))
        return padded.reshape(num_blocks, rows, *array.shape[1:])

    def whole(result: jax.Array) -> jax.Array:
        return result.reshape(num_blocks * rows, *result.shape[2:])[:num_rows]

    return jax.tree.map(whole, jax.lax.map(function, jax.tree.map(into_blocks, arrays)))
