"""The network that turns the radial basis of an edge into weights of tensor-product paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax


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
    weights: Sequence[jax.Array], x: jax.Array, activation: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """x <- activation(x W / √fan_in) for hidden layers, linear last layer, no biases: zero input stays zero."""
    for weight in weights[:-1]:
        x = activation(x @ weight * weight.shape[0] ** -0.5)
    return x @ weights[-1] * weights[-1].shape[0] ** -0.5
