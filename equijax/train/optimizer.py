"""Adam, AMSGrad and AdamW as torch.optim defines them, with weight decay on named parameters only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from equijax.errors import EquijaxError, did_you_mean
from equijax.train.config import OptimizerConfig
from equijax.train.parameter_groups import compiled, parameter_path, parameter_paths

Params = Any


def decay_mask(params: Params, patterns: tuple[str, ...]) -> Params:
    """True for each parameter whose whole path matches one of the regular expressions."""
    expressions = [compiled(pattern, "training.optimizer.decay_parameters") for pattern in patterns]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(e.fullmatch(parameter_path(path)) for e in expressions), params
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


def build_optimizer(
    config: OptimizerConfig, params: Params, factors: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """Gradient -> descent direction. The caller multiplies by -learning rate, which varies from step to step.

    `params` are those that are trained; `factors` {path: factor} are `learning_rate_factors`, and scale the decay of
    AdamW with the rest of the direction, as torch's parameter groups do.
    """
    parts = [scale_by_adam(config.beta1, config.beta2, config.epsilon, config.amsgrad)]
    if config.weight_decay > 0:
        mask = decay_mask(params, config.decay_parameters)
        if not any(jax.tree.leaves(mask)):
            names = parameter_paths(params)
            shown = ", ".join(names[:4])
            raise EquijaxError(
                "training.optimizer.decay_parameters: matches no parameter, so weight_decay would do nothing; "
                f"expected regular expressions for paths such as {shown}; "
                f"{did_you_mean(config.decay_parameters[0], names) if config.decay_parameters else ''}".rstrip("; ")
            )
        parts.insert(0 if config.name == "adam" else 1, optax.add_decayed_weights(config.weight_decay, mask=mask))
    scaled = {name: factor for name, factor in (factors or {}).items() if factor not in (0.0, 1.0)}
    if scaled:
        parts.append(scale_by_path(scaled))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiply the direction of the parameters with these paths."""

    def update(direction: Params, params: Params | None) -> Params:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, d: d * factors[parameter_path(path)] if parameter_path(path) in factors else d, direction
        )

    return optax.stateless(update)


def global_norm(tree: Params) -> jax.Array:
    """√Σ x² over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def clip_by_norm(gradient: Params, norm: jax.Array, limit: float | None) -> Params:
    """Scale the gradient down to the norm `limit`; unchanged when it is smaller or `limit` is None."""
    if limit is None:
        return gradient
    factor = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)
