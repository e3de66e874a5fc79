"""Constants that give activations unit second moment on N(0, 1) input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax

ActivationNorm = Literal["exact", "torch_e3nn"]

# 1 / sqrt(E[f(z)²]), z ~ N(0, 1). torch_e3nn: the Monte Carlo estimate (1e6 samples) frozen in e3nn 0.4.4, which
# trained mace-torch weights assume; exact: the integral.
_SECOND_MOMENT = {
    "exact": {"silu": 1.6765324703310909, "tanh": 1.5925374197228312},
    "torch_e3nn": {"silu": 1.6791767923989418, "tanh": 1.5937334472592695},
}


def normalized_silu(norm: ActivationNorm) -> Callable[[jax.Array], jax.Array]:
    """silu scaled to unit second moment."""
    constant = _SECOND_MOMENT[norm]["silu"]
    return lambda x: constant * jax.nn.silu(x)
