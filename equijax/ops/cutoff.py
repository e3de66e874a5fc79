"""Smooth envelopes that take every contribution of an edge to zero at the cutoff."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def polynomial_cutoff(lengths: jax.Array, cutoff: float | jax.Array, power: int) -> jax.Array:
    """Envelope f(r/cutoff), one at r = 0 and zero from the cutoff on, C² there for power >= 3. Lengths in Å.

    1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2) with u = r/cutoff (Eq. 8, arXiv:2003.03123), written as
    (1 - u)³ Σ_k (k+1)(k+2)/2 u^k, k < p: the same polynomial, but positive to the last bit before the cutoff, where
    the difference of large terms is rounding noise (1e-6 in float32, of either sign).
    """
    gap = jnp.maximum(cutoff - lengths, 0.0) / cutoff
    u = jnp.minimum(lengths / cutoff, 1.0)
    series = jnp.full_like(u, power * (power + 1) / 2)
    for k in reversed(range(power - 1)):
        series = series * u + (k + 1) * (k + 2) / 2
    return jnp.where(lengths < cutoff, gap**3 * series, 0.0)


def cosine_cutoff(lengths: jax.Array, cutoff: float) -> jax.Array:
    """(1 + cos(π r/cutoff)) / 2, zero from the cutoff on, where only its first derivative is continuous. Å."""
    return jnp.where(lengths < cutoff, 0.5 * (1.0 + jnp.cos(jnp.pi / cutoff * lengths)), 0.0)


def nearest_neighbors(lengths: jax.Array, counts: jax.Array, number: int) -> jax.Array:
    """The mask `counts` [N, K] with no more than the `number` shortest `lengths` of each row, Å.

    Edges within 0.01 Å of the last one count too, all of a shell. What is made of them jumps where two change places.
    """
    if number >= lengths.shape[1]:
        return counts
    ordered = jnp.sort(jnp.where(counts, lengths, jnp.inf), axis=1)
    return counts & (lengths < ordered[:, number - 1, None] + 0.01)
