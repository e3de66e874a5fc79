"""Exponential moving average of the parameters, which is what gets evaluated and saved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update_average(average: Any, params: Any, updates: jax.Array, decay: float) -> Any:
    """decay' average + (1 - decay') params with decay' = min(decay, (1 + n) / (10 + n)).

    `updates` is n, the number of updates including this one (int32). The smaller decay of the first steps
    forgets the random start, as torch_ema, which mace-torch uses, does.
    """
    count = updates.astype(jnp.float32)
    step_decay = jnp.minimum(decay, (1 + count) / (10 + count))

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (1 - step_decay).astype(old.dtype) * (new - old)

    return jax.tree.map(blend, average, params)
