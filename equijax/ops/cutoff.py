"""Smooth envelopes that take every contribution of an edge to zero at the cutoff."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def polynomial_cutoff(lengths: jax.Array, cutoff: float | jax.Array, power: int) -> jax.Array:
    """Envelope f(r/cutoff), one at r = 0 and zero from the cutoff on, C² there for power >= 3. Lengths in Å.

    1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2) with u = r/cutoff (Eq. 8, arXiv:2003.03123).
    """
    p = power
    u = jnp.minimum(lengths / cutoff, 1.0)
    polynomial = 1.0 - u**p * ((p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2)))
    return jnp.where(lengths < cutoff, polynomial, 0.0)
