"""One optimiser step and one evaluation of a padded batch, as compiled functions of data only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from equijax.graph.padding import CompileCounter
from equijax.nn.receiver_blocks import TRAINING_BYTES, blocks_above
from equijax.precision import jit
from equijax.train.config import LossConfig, TrainingConfig
from equijax.train.devices import Devices, sum_over_devices, with_counts_of_all
from equijax.train.ema import update_average
from equijax.train.loss import total_loss
from equijax.train.objective import Objective
from equijax.train.optimizer import clip_by_norm, global_norm
from equijax.train.parameter_groups import merged

Params = Any

COMMITTEE = "committee"
"""The axis over the members of a committee in a compiled step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. `average` is None without EMA; `skipped` counts non-finite batches (int32).

    `params` are the trained ones and `frozen` the others (None when all are trained), as `trained_and_frozen` parts
    them: what is frozen has neither gradient nor optimiser state nor average. Of a committee they, `opt_state` and
    `average` have an axis over the members in front; the counts are those of all.
    """

    params: Params
    opt_state: Any
    average: Params | None
    updates: jax.Array
    skipped: jax.Array
    frozen: Params | None = None

    @property
    def all_params(self) -> Params:
        """Trained and frozen parameters, as the model takes them."""
        return merged(self.params, self.frozen)

    @property
    def evaluated(self) -> Params:
        """The parameters that are validated and saved: the moving average where there is one."""
        return merged(self.params if self.average is None else self.average, self.frozen)


def initial_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    frozen: Params | None = None,
    committee: int = 1,
) -> TrainState:
    """State before the first step. The average starts as a copy: donated buffers must not be shared."""
    return TrainState(
        params=params,
        opt_state=optimizer.init(params) if committee == 1 else jax.vmap(optimizer.init)(params),
        average=None if ema_decay is None else jax.tree.map(jnp.copy, params),
        updates=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        frozen=frozen,
    )


def batch_loss(
    objective: Objective,
    module: Any,
    loss: LossConfig,
    params: Params,
    batch: Any,
    weights: dict[str, Any],
    updates: jax.Array | None = None,
    is_part: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of a batch to be differentiated, and the sums it is made of. `updates` counts the steps of training. With
    `is_part` it is what the part of a batch on one of several devices adds to the loss of the whole."""
    with blocks_above(TRAINING_BYTES):
        sums = objective.sums(objective.predict(module, params, batch, updates), batch, loss)
    return total_loss(with_counts_of_all(sums) if is_part else sums, weights), sums


def build_train_step(
    objective: Objective,
    module: Any,
    optimizer: optax.GradientTransformation,
    training: TrainingConfig,
    loss: LossConfig,
    counter: CompileCounter,
    devices: Devices | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Compile `(state, batch, learning_rate, weights) -> (state, metrics)`; the state's buffers are donated.

    When the loss or the gradient is not finite the update is left out and `skipped` grows by one; once it has
    exceeded `training.allowed_skips` every further update is left out too, so that the state still is the one
    that met the bad batch when the host, a step or two later, reads `metrics["finite"]`.
    `counter` counts compiled shapes. The members of a committee take the same batch, each its own gradient, norm and
    moments; the metrics are means over them, and an update is left out for all when it is not finite for one.
    For several `devices` see `Devices.step`: what is compiled has the same result as for the whole batch on one.
    """
    is_committee = training.committee > 1
    is_part = devices is not None

    def step(state: TrainState, batch: Any, learning_rate: Any, weights: dict[str, Any]) -> Any:
        def of_trained(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            params = merged(trained, state.frozen)
            return batch_loss(objective, module, loss, params, batch, weights, state.updates, is_part)

        (value, sums), gradient = jax.value_and_grad(of_trained, has_aux=True)(state.params)
        if is_part:
            value, sums, gradient = sum_over_devices((value, sums, gradient))
        norm = global_norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        if is_committee:
            finite = jax.lax.psum((~finite).astype(jnp.int32), COMMITTEE) == 0
        apply = finite & (state.skipped <= training.allowed_skips)

        clipped = clip_by_norm(gradient, norm, training.clip_grad_norm)
        direction, opt_state = optimizer.update(clipped, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate.astype(p.dtype) * d, state.params, direction)
        updates = state.updates + 1
        average = state.average
        if average is not None and training.ema_decay is not None:
            average = update_average(average, params, updates, training.ema_decay)

        moved = (params, opt_state, average, updates)
        stayed = (state.params, state.opt_state, state.average, state.updates)
        params, opt_state, average, updates = jax.tree.map(lambda new, old: jnp.where(apply, new, old), moved, stayed)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        metrics = {**sums, "loss": value, "grad_norm": norm, "finite": finite}
        return TrainState(params, opt_state, average, updates, skipped, state.frozen), metrics

    def committee_step(state: TrainState, batch: Any, learning_rate: Any, weights: dict[str, Any]) -> Any:
        axes = TrainState(params=0, opt_state=0, average=0, updates=None, skipped=None, frozen=0)  # type: ignore[arg-type]
        together = jax.vmap(step, in_axes=(axes, None, None, None), out_axes=(axes, 0), axis_name=COMMITTEE)
        state, metrics = together(state, batch, learning_rate, weights)
        finite = jnp.all(metrics.pop("finite"))
        return state, over_members(metrics) | {"finite": finite}

    whole = committee_step if is_committee else step
    return jit(counter.wrap(whole if devices is None else devices.step(whole), "step"), donate_argnums=0)


def over_members(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over the members of a committee, [K] to scalars."""
    return {name: jnp.mean(value, axis=0) for name, value in sums.items()}


def build_evaluation_step(
    objective: Objective,
    module: Any,
    loss: LossConfig,
    counter: CompileCounter,
    committee: int = 1,
    devices: Devices | None = None,
) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """Compile `(params, batch) -> sums` with `finite_graphs` [G]: False where a prediction is NaN or infinite.

    Of a committee the sums are means over the members: errors are those of a member, not of their mean prediction.
    For several `devices` see `Devices.evaluation`.
    """

    def evaluate(params: Params, batch: Any) -> dict[str, jax.Array]:
        prediction = objective.predict(module, params, batch)
        return {
            **objective.sums(prediction, batch, loss),
            "finite_graphs": objective.finite_graphs(prediction, batch),
        }

    def evaluate_committee(params: Params, batch: Any) -> dict[str, jax.Array]:
        sums = jax.vmap(evaluate, in_axes=(0, None))(params, batch)
        finite = jnp.all(sums.pop("finite_graphs"), axis=0)
        return over_members(sums) | {"finite_graphs": finite}

    whole = evaluate if committee == 1 else evaluate_committee
    return jit(counter.wrap(whole if devices is None else devices.evaluation(whole), "evaluate"))
