"""Layer normalisation of scalars, and of equivariant features [N, (lmax+1)², C] (EquiformerV2, arXiv:2306.12059).

ε is added to the mean square inside the root, so values and all derivatives are finite for features that vanish.
"""

from __future__ import annotations

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.config.base import StrictModel, spelt_out

Epsilon = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]


def centred(x: jax.Array) -> jax.Array:
    """x minus its mean over the last axis."""
    return x - jnp.mean(x, axis=-1, keepdims=True)


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + ε) over the last axis, times `scale`, plus `bias` [C]."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        x = centred(x)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * scale + bias


def _inverse_rms(x: jax.Array, degrees: range, epsilon: float) -> jax.Array:
    """1 / √(mean of x² over channels and components + ε) [N, 1, 1], in which every degree counts the same."""
    weights = np.concatenate([np.full(2 * l + 1, 1 / ((2 * l + 1) * len(degrees))) for l in degrees])
    mean = jnp.einsum("nrc,r->n", x * x, weights.astype(x.dtype)) / x.shape[-1]
    return jax.lax.rsqrt(mean + epsilon)[:, None, None]


def _per_row(per_degree: jax.Array, degrees: range) -> jax.Array:
    """[degrees, C] as one row per component."""
    sizes = np.array([2 * l + 1 for l in degrees])
    return jnp.repeat(per_degree, sizes, axis=0, total_repeat_length=int(sizes.sum()))


class _SeparateNorm(nn.Module):
    lmax: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scalars = LayerNorm(self.epsilon, name="scalars")(x[:, :1])
        if self.lmax == 0:
            return scalars
        scale = self.param("scale", nn.initializers.ones, (self.lmax, x.shape[-1]), x.dtype)
        degrees, others = range(1, self.lmax + 1), x[:, 1:]
        others = others * _inverse_rms(others, degrees, self.epsilon) * _per_row(scale, degrees)
        return jnp.concatenate([scalars, others], axis=1)


class _JointNorm(nn.Module):
    lmax: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        degrees = range(self.lmax + 1)
        scale = self.param("scale", nn.initializers.ones, (self.lmax + 1, x.shape[-1]), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        x = jnp.concatenate([centred(x[:, :1]), x[:, 1:]], axis=1)
        x = x * _inverse_rms(x, degrees, self.epsilon) * _per_row(scale, degrees)
        return jnp.concatenate([x[:, :1] + bias, x[:, 1:]], axis=1)


class LayerNormSH(StrictModel):
    """Scalars by layer normalisation, all other degrees together by their root mean square.

    Higher degrees of an atom that is losing its last neighbours are magnified by up to 1/√ε; forces there grow with it.
    """

    name: Literal["layer_norm_sh"] = "layer_norm_sh"
    epsilon: Epsilon = 1e-5
    """Added to mean squares."""

    def module(self, lmax: int, name: str | None = None) -> nn.Module:
        return _SeparateNorm(lmax, self.epsilon, name=name)


class RMSNormSH(StrictModel):
    """Every degree by the one root mean square of all, scalars centred: the higher ones keep their size beside them."""

    name: Literal["rms_norm_sh"] = "rms_norm_sh"
    epsilon: Epsilon = 1e-5
    """Added to mean squares."""

    def module(self, lmax: int, name: str | None = None) -> nn.Module:
        return _JointNorm(lmax, self.epsilon, name=name)


AnyNorm = Annotated[LayerNormSH | RMSNormSH, pydantic.Field(discriminator="name"), pydantic.BeforeValidator(spelt_out)]
