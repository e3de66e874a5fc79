"""Linear maps with the parameters of torch: kernels from U(±1/√fan_in), biases from zero, no factors added."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.irreps.layout import degree_slice
from equijax.nn.mixing_product import mixing_product
from equijax.precision import Part

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_uniform_per_degree = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))


def uniform_between(low: float, high: float) -> nn.initializers.Initializer:
    """U(low, high)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, minval=low, maxval=high)


class Dense(nn.Module):
    """x W + b over the last axis: `kernel` [C, C'], `bias` [C']."""

    features: int
    use_bias: bool = True
    part: Part = "channels"

    @nn.compact
    def parameters(self, inputs: int, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, Any]:
        """Kernel, and bias or None, for callers that apply them in blocks."""
        kernel = self.param("kernel", _uniform, (inputs, self.features), dtype)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), dtype) if self.use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.parameters(x.shape[-1], x.dtype)
        y = mixing_product(x, kernel, self.part)
        return y if bias is None else y + bias


class DegreeDense(nn.Module):
    """A kernel per degree, and a bias on the scalars: [N, (lmax+1)², C] to C' channels.

    `kernel` [degrees, C, C'], `bias` [C']. With `lmin` > 0 the rows are those of degrees lmin..lmax, and have no bias.
    """

    features: int
    lmax: int
    lmin: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.lmax + 1 - self.lmin, x.shape[-1], self.features)
        kernel = self.param("kernel", _uniform_per_degree, shape, x.dtype)
        first = degree_slice(self.lmin).start
        rows = [degree_slice(l) for l in range(self.lmin, self.lmax + 1)]
        degrees = [mixing_product(x[:, r.start - first : r.stop - first], kernel[i]) for i, r in enumerate(rows)]
        if self.lmin == 0 and self.use_bias:
            degrees[0] = degrees[0] + self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        return jnp.concatenate(degrees, axis=1)
