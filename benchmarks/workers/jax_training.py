"""The training step of the other libraries that run on JAX: an AMSGrad update with donated buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax


def training(loss: Callable[[Any], jax.Array], params: Any) -> Callable[[], None]:
    """A function that takes a step of `loss(params)` each time it is called, and waits for it."""
    optimizer = optax.amsgrad(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(p: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(p)
        updates, state = optimizer.update(gradient, state, p)
        return optax.apply_updates(p, updates), state, value

    state = [params, optimizer.init(params)]

    def train() -> None:
        state[0], state[1], value = step(*state)
        float(value)

    return train
