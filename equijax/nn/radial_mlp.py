"""The network that turns the radial basis of an edge into weights of tensor-product paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.nn.mixing_product import mixing_product


class RadialMLP(nn.Module):
    """Holds the weights `layer_i` [in, out], N(0, 1); `apply_radial_mlp` evaluates them.

    Kept apart so that the last layer can be evaluated inside blocks of atoms, where it never exists in full.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, num_inputs: int, dtype: jax.typing.DTypeLike) -> list[jax.Array]:
        sizes = (num_inputs, *self.widths)
        return [
            self.param(f"layer_{i}", nn.initializers.normal(1.0), (sizes[i], sizes[i + 1]), dtype)
            for i in range(len(self.widths))
        ]


def apply_radial_mlp(
    weights: Sequence[jax.Array], activation: Callable[[jax.Array], jax.Array], x: jax.Array, pieces: int = 1
) -> list[jax.Array]:
    """x <- activation(x W / √fan_in) for hidden layers, linear last layer, no biases: zero input stays zero.

    x [E, in] to [E, out], as `pieces` arrays of equal width. Two axes, because the transpose of a product of three
    makes XLA on the CPU copy its operand with the channels slowest; the factors stand with the weights, which are
    smaller.
    """
    *hidden, last = (weight * weight.shape[0] ** -0.5 for weight in weights)
    for weight in hidden:
        x = activation(mixing_product(x, weight, "radial"))
    return [mixing_product(x, piece, "radial") for piece in jnp.split(last, pieces, axis=1)]
