"""The SO(2) convolution of eSCN (arXiv:2302.03655): to hidden channels, times scalars of the edge, and back."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.dense import Dense
from equijax.nn.edge_frame import Parts
from equijax.nn.mixing_product import mixing_product
from equijax.nn.so2_linear import complex_product
from equijax.ops.clebsch_gordan import Parity

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))


class SO2Bottleneck(nn.Module):
    """Parts of degrees 0..lmax to parts of degrees 0..lmax_out, |m| <= mmax, and `extra_scalars` from m = 0.

    For m = 0, y = (silu(G e) ⊙ x V) V' with edge scalars e; for m > 0 the same real map R of both components and, with
    parity any, a second one I that couples them (`so2_linear`). Weights per m: `in_m` [S, (lmax+1-m) C, H], `gate_m`
    to S H, `out_m` [S, H, ...]; S = 2, R and I, for m > 0 with parity any, and 1 otherwise. In `out_0` the extra
    scalars come first.
    """

    lmax_out: int
    mmax: int
    channels_out: int
    hidden_channels: int
    parity: Parity
    extra_scalars: int

    @nn.compact
    def __call__(self, parts: Parts, edge_scalars: jax.Array) -> tuple[Parts, jax.Array]:
        results = []
        for m in range(min(self.mmax, self.lmax_out) + 1):
            x = parts[m]
            maps = 2 if m > 0 and self.parity == "any" else 1
            outputs = (self.lmax_out + 1 - m) * self.channels_out + (self.extra_scalars if m == 0 else 0)
            gates = jax.nn.silu(Dense(maps * self.hidden_channels, name=f"gate_{m}")(edge_scalars))[:, :, None]
            into = self.param(f"in_{m}", _uniform, (maps, x.shape[-1], self.hidden_channels), x.dtype)
            out = self.param(f"out_{m}", _uniform, (maps, self.hidden_channels, outputs), x.dtype)
            y = [
                mixing_product(mixing_product(x, into[i]) * g, out[i])
                for i, g in enumerate(jnp.split(gates, maps, axis=-1))
            ]
            results.append(complex_product(*y) if maps == 2 else y[0])
        scalars, first = jnp.split(results[0], [self.extra_scalars], axis=-1)
        return (first, *results[1:]), scalars[:, :, 0]
