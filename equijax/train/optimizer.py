"""Adam, AMSGrad and AdamW as torch.optim defines them, with weight decay on named parameters only."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from equijax.errors import EquijaxError, did_you_mean
from equijax.train.config import OptimizerConfig

Params = Any


def parameter_path(path: tuple[Any, ...]) -> str:
    """`interactions_0/linear/0e`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def decay_mask(params: Params, patterns: tuple[str, ...]) -> Params:
    """True for each parameter whose whole path matches one of the regular expressions."""
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise EquijaxError(
            f"training.optimizer.decay_parameters: {error.pattern!r} is not a regular expression ({error})"
        ) from error
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(p.fullmatch(parameter_path(path)) for p in compiled), params
    )


class AdamState(NamedTuple):
    """`updates` applied so far, first and second moments, and the largest second moment (AMSGrad) or ()."""

    updates: jax.Array
    first: Params
    second: Params
    largest: Params


def scale_by_adam(beta1: float, beta2: float, epsilon: float, amsgrad: bool) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) and AMSGrad (Reddi et al. 2018), with torch's order of operations.

    torch takes the maximum of the raw second moments and corrects its bias afterwards. optax 0.2 takes the
    maximum of corrected ones, which keeps the first, large gradients for ever and slows training down.
    """

    def init(params: Params) -> AdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return AdamState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros() if amsgrad else ())

    def update(gradient: Params, state: AdamState, params: Params | None = None) -> tuple[Params, AdamState]:
        del params
        updates = state.updates + 1
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.first, gradient)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.second, gradient)
        largest = jax.tree.map(jnp.maximum, state.largest, second) if amsgrad else ()

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            n = updates.astype(m.dtype)
            return (m / bias_correction(beta1, n)) / (jnp.sqrt(v / bias_correction(beta2, n)) + epsilon)

        return jax.tree.map(direction, first, largest if amsgrad else second), AdamState(
            updates, first, second, largest
        )

    return optax.GradientTransformation(init, update)


def bias_correction(beta: float, updates: jax.Array) -> jax.Array:
    """1 - beta^n without the cancellation that float32 would suffer for beta = 0.999 and small n."""
    return -jnp.expm1(updates * math.log(beta)) if beta > 0 else jnp.ones_like(updates)


def build_optimizer(config: OptimizerConfig, params: Params) -> optax.GradientTransformation:
    """Gradient -> descent direction. The caller multiplies by -learning rate, which varies from step to step."""
    adam = scale_by_adam(config.beta1, config.beta2, config.epsilon, config.amsgrad)
    if config.weight_decay == 0:
        return adam
    mask = decay_mask(params, config.decay_parameters)
    if not any(jax.tree.leaves(mask)):
        names = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shown = ", ".join(sorted(names)[:4])
        raise EquijaxError(
            "training.optimizer.decay_parameters: matches no parameter, so weight_decay would do nothing; "
            f"expected regular expressions for paths such as {shown}; "
            f"{did_you_mean(config.decay_parameters[0], names) if config.decay_parameters else ''}".rstrip("; ")
        )
    decay = optax.add_decayed_weights(config.weight_decay, mask=mask)
    return optax.chain(decay, adam) if config.name == "adam" else optax.chain(adam, decay)


def global_norm(tree: Params) -> jax.Array:
    """√Σ x² over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def clip_by_norm(gradient: Params, norm: jax.Array, limit: float | None) -> Params:
    """Scale the gradient down to the norm `limit`; unchanged when it is smaller or `limit` is None."""
    if limit is None:
        return gradient
    factor = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)
