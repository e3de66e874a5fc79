"""Linear maps in the frame of the edge that mix degrees and channels at once (eSCN, arXiv:2302.03655).

For every order m one matrix takes all degrees and channels of `parts[m]` (see `edge_frame`) to those of the result:

    y_0 = W_0 x_0 + b,    y_+m = R_m x_+m - I_m x_-m,    y_-m = R_m x_-m + I_m x_+m.

These are all linear maps that commute with turns about the edge; without I, all that respect inversion as well.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.edge_frame import Parts
from equijax.nn.mixing_product import mixing_product
from equijax.ops.clebsch_gordan import Parity


def uniform_fan_in(scale: float = 1.0) -> nn.initializers.Initializer:
    """U(±scale / √fan_in) for kernels [fan_in, fan_out], which eSCN and EquiformerV2 start from."""
    return nn.initializers.variance_scaling(scale**2 / 3, "fan_in", "uniform")


def complex_product(real: jax.Array, imaginary: jax.Array) -> jax.Array:
    """(r_+ - i_-, r_- + i_+) of arrays [N, K, 2 (+, -), F]."""
    plus = real[:, :, :1] - imaginary[:, :, 1:]
    minus = real[:, :, 1:] + imaginary[:, :, :1]
    return jnp.concatenate([plus, minus], axis=2)


class SO2Linear(nn.Module):
    """Parts of degrees 0..lmax_in to parts of degrees lmin_out..lmax_out; the largest m is the smallest of all bounds.

    Weights `m_0` [(lmax_in+1) C, E + (lmax_out+1-lmin_out) C'], the E = `extra_scalars` first, and `m_1`, ...: R with
    parity natural, R and I side by side with parity any.
    """

    lmax_in: int
    lmax_out: int
    mmax: int
    channels_in: int
    channels_out: int
    parity: Parity = "natural"
    extra_scalars: int = 0
    bias: bool = False
    lmin_out: int = 0

    @property
    def reach(self) -> int:
        """The largest m of the result."""
        return min(self.lmax_in, self.lmax_out, self.mmax)

    @property
    def factor_count(self) -> int:
        """F, the number of factors per edge that `__call__` takes."""
        return self.channels_in * sum(self.lmax_in + 1 - m for m in range(self.reach + 1))

    @nn.compact
    def __call__(self, parts: Parts, factors: jax.Array | None = None) -> tuple[Parts, jax.Array]:
        """The parts of the result, and the extra scalars [N, K, E].

        `factors` [N, K, F] multiply the inputs: one per degree and channel of every m, the same for +m and -m,
        m slow.
        """
        per_m: list[jax.Array | None] = [None] * (self.reach + 1)
        if factors is not None:
            sizes = [self.channels_in * (self.lmax_in + 1 - m) for m in range(self.reach + 1)]
            per_m = list(jax.lax.split(factors[:, :, None], sizes, axis=3))
        results = []
        for m, factor in enumerate(per_m):
            x = parts[m] if factor is None else parts[m] * factor
            outputs = (self.lmax_out + 1 - max(m, self.lmin_out)) * self.channels_out
            if m == 0:
                y = self._kernel(m, x, self.extra_scalars + outputs)
                if self.bias:
                    y = y + self.param("bias", nn.initializers.zeros, (y.shape[-1],), y.dtype)
                scalars, y = jnp.split(y[:, :, 0], [self.extra_scalars], axis=-1)
                results.append(y[:, :, None])
            elif self.parity == "natural":
                results.append(self._kernel(m, x, outputs))
            else:
                real, imaginary = jnp.split(self._kernel(m, x, 2 * outputs), 2, axis=-1)
                results.append(complex_product(real, imaginary))
        return tuple(results), scalars

    def _kernel(self, m: int, x: jax.Array, outputs: int) -> jax.Array:
        # Two terms add up in every result of m > 0 with parity any.
        scale = 2**-0.5 if m > 0 and self.parity == "any" else 1.0
        return mixing_product(x, self.param(f"m_{m}", uniform_fan_in(scale), (x.shape[-1], outputs), x.dtype))
