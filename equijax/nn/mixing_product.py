"""Products of features with trained matrices: the one place that decides how precisely they are computed.

They take channels to channels and treat all components of an irrep alike, which is why their inputs may be rounded at
all: a rounded matrix is a matrix as good as the exact one. What couples components (Clebsch-Gordan, grids, rotations)
must not go through here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from equijax.precision import Part, Rounding, rounding_of

_PRESETS = {
    "tf32": jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
    "bf16": jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
}
_BITS = {"tf32": (8, 10), "bf16": (8, 7)}
"""Bits of exponent and mantissa."""


def mixing_product(x: jax.Array, kernel: jax.Array, part: Part = "channels") -> jax.Array:
    """x [..., C] @ kernel [C, C'], or matrices with more axes in front as in `jnp.matmul`.

    Inside a scope `precision(..., matmul)` that rounds this part, the inputs of this product and of those in its
    derivatives are rounded and sums stay float32: by the tensor cores of a GPU, by hand on the CPU.
    """
    if x.ndim > 2 and kernel.ndim == 2:
        # The transpose of a product of three axes makes XLA on the CPU copy x with its channels slowest, element by
        # element; of two axes it reads them as they lie.
        rows = mixing_product(x.reshape(-1, x.shape[-1]), kernel, part)
        return rows.reshape(*x.shape[:-1], kernel.shape[1])
    rounding = rounding_of(part)
    if rounding == "none":
        return x @ kernel
    if jax.default_backend() == "cpu":
        return _emulated(x, kernel, rounding)
    return jnp.matmul(x, kernel, precision=_PRESETS[rounding])


def _emulated(x: jax.Array, kernel: jax.Array, rounding: Rounding) -> jax.Array:
    """The product of rounded inputs in float32. So are the first derivatives in reverse mode. Of the products in higher
    ones, and of those in forward mode, one of the two inputs is not rounded but the result is."""
    rounded, rounds_cotangents = _roundings(*_BITS[rounding])
    return rounds_cotangents(rounded(x) @ rounded(kernel))


def _roundings(exponent: int, mantissa: int) -> tuple[jax.custom_jvp, jax.custom_jvp]:
    """Rounding with the derivative of the identity, and the identity with the derivative of rounding."""

    def rounding(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent, mantissa)

    rounded, identity = jax.custom_jvp(rounding), jax.custom_jvp(lambda x: x)
    rounded.defjvp(lambda primals, tangents: (rounded(*primals), *tangents))
    identity.defjvp(lambda primals, tangents: (identity(*primals), rounding(*tangents)))
    return rounded, identity
