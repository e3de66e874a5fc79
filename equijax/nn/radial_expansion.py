"""Radial functions of frozen weights, as a short expansion in polynomials instead of a network per edge.

A trained network from a distance to the weights of all paths is a curve in a space of many dimensions, and the curve
stays near a few of them: R(r) = f(r) P(r) A B, with the envelope f, D polynomials P of the distance, a matrix A [D, k]
and a matrix B [k, out]. Fitted in float64 to a tolerance by `equijax.potential.frozen`.
"""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel

FACTOR = 8
"""The polynomials are products of one of the first eight of Chebyshev's and one of every eighth."""


class RadialExpansion(StrictModel):
    """Sizes of the expansions that take the place of radial networks; `equijax freeze` chooses them."""

    polynomials: Annotated[int, pydantic.Field(ge=FACTOR, le=512, multiple_of=FACTOR)]
    """D, polynomials of the distance."""
    rank: Annotated[int, pydantic.Field(ge=1, le=512)]
    """k, radial functions of which the weights of all paths are combinations."""


class RadialExpansionWeights(nn.Module):
    """Holds `polynomials` [D, k] and `paths` [k, out]; `apply_radial_expansion` evaluates them."""

    expansion: RadialExpansion
    width: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros_init()
        shape = (self.expansion.polynomials, self.expansion.rank)
        return (
            self.param("polynomials", zeros, shape, dtype),
            self.param("paths", zeros, (shape[1], self.width), dtype),
        )


def polynomial_products(lengths: jax.Array, cutoff: float, count: int) -> jax.Array:
    """T_i(x) T_8j(x), i < 8, 8j < count, with Chebyshev's T and x = 2 r/cutoff - 1: [E] to [E, count], i fast.

    They span the polynomials of degree below `count`: T_i T_8j is the mean of T_(8j+i) and T_(8j-i). Lengths beyond the
    cutoff count as the cutoff.
    """
    x = 2.0 / cutoff * jnp.minimum(lengths, cutoff) - 1.0
    first = _chebyshev(x, FACTOR + 1)
    every_eighth = _chebyshev(first[FACTOR], count // FACTOR)
    fast, slow = jnp.stack(first[:FACTOR], axis=-1), jnp.stack(every_eighth, axis=-1)
    return (slow[:, :, None] * fast[:, None, :]).reshape(-1, count)


def _chebyshev(x: jax.Array, count: int) -> list[jax.Array]:
    """T_0 to T_(count-1) by their recurrence; T_m(T_n(x)) = T_mn(x)."""
    values = [jnp.ones_like(x), x]
    while len(values) < count:
        values.append(2.0 * x * values[-1] - values[-2])
    return values[:count]


def apply_radial_expansion(
    polynomials: jax.Array, paths: jax.Array, cutoff: float, inputs: jax.Array, pieces: int = 1
) -> list[jax.Array]:
    """The weights of all paths, [E, 2] to [E, out], as `pieces` arrays of equal width.

    `inputs` are the distance in Å and the envelope, which is zero beyond the cutoff and on padded slots.
    """
    lengths, envelope = inputs[:, 0], inputs[:, 1:]
    basis = envelope * (polynomial_products(lengths, cutoff, polynomials.shape[0]) @ polynomials)
    return [basis @ piece for piece in jnp.split(paths, pieces, axis=1)]
