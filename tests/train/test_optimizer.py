"""Optimisers against a plain numpy reading of torch's documentation; decay groups; clipping; averaging."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.train.config import OptimizerConfig
from equijax.train.ema import update_average
from equijax.train.optimizer import build_optimizer, clip_by_norm, decay_mask, global_norm

PARAMS = {
    "interactions_0": {"linear": {"0e": np.ones(3)}, "linear_up": {"0e": np.ones(3)}},
    "products_1": {"symmetric_contraction": {"0e": {"nu_1": np.ones(3)}}, "linear": {"0e": np.ones(3)}},
    "readouts_0": {"linear": {"0e": np.ones(3)}},
}


def reference(gradients, config, rate, start):
    """torch.optim.Adam / AdamW, one parameter, in float64."""
    p, m, v, largest = start.astype(np.float64), 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        if config.name == "adam":
            g = g + config.weight_decay * p
        else:
            p = p * (1 - rate * config.weight_decay)
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        largest = np.maximum(largest, v)
        root = np.sqrt(largest if config.amsgrad else v) / np.sqrt(1 - config.beta2**t)
        p = p - rate / (1 - config.beta1**t) * m / (root + config.epsilon)
    return p


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("amsgrad", [True, False])
def test_steps_are_those_of_torch(name, amsgrad):
    config = OptimizerConfig(name=name, amsgrad=amsgrad, weight_decay=0.1, decay_parameters=["w"])
    rng = np.random.default_rng(0)
    start = rng.normal(size=5)
    gradients = [rng.normal(size=5) * scale for scale in (100.0, 1.0, 0.3, 3.0, 0.1, 0.1)]
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(start)}
        optimizer = build_optimizer(config, params)
        state = optimizer.init(params)
        for gradient in gradients:
            direction, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
            params = {"w": params["w"] - 0.01 * direction["w"]}
        result = np.asarray(params["w"])
    np.testing.assert_allclose(result, reference(gradients, config, 0.01, start), rtol=1e-12)


def test_mace_decay_group_is_linear_and_product_weights():
    mask = decay_mask(PARAMS, OptimizerConfig().decay_parameters)
    assert mask["interactions_0"] == {"linear": {"0e": True}, "linear_up": {"0e": False}}
    assert mask["products_1"] == {"symmetric_contraction": {"0e": {"nu_1": True}}, "linear": {"0e": True}}
    assert mask["readouts_0"] == {"linear": {"0e": False}}


def test_only_the_decay_group_decays():
    optimizer = build_optimizer(OptimizerConfig(name="adamw", weight_decay=0.5), PARAMS)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    direction, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert float(direction["products_1"]["linear"]["0e"][0]) == 0.5
    assert float(direction["readouts_0"]["linear"]["0e"][0]) == 0.0


def test_a_decay_group_that_matches_nothing_is_refused():
    config = OptimizerConfig(weight_decay=1e-4, decay_parameters=["product_1/.*"])
    with pytest.raises(EquijaxError, match=r"decay_parameters: matches no parameter, so weight_decay would do nothing"):
        build_optimizer(config, PARAMS)
    with pytest.raises(EquijaxError, match="is not a regular expression"):
        build_optimizer(OptimizerConfig(weight_decay=1e-4, decay_parameters=["("]), PARAMS)


def test_clipping_limits_the_global_norm():
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    norm = global_norm(gradient)
    assert float(norm) == pytest.approx(5.0)
    clipped = clip_by_norm(gradient, norm, 1.0)
    assert float(global_norm(clipped)) == pytest.approx(1.0, rel=1e-5)
    assert float(clip_by_norm(gradient, norm, 10.0)["a"][0]) == 3.0
    assert clip_by_norm(gradient, norm, None) is gradient


def test_average_forgets_the_start_and_then_uses_the_given_decay():
    average = {"w": jnp.zeros(())}
    first = update_average(average, {"w": jnp.ones(())}, jnp.int32(1), 0.99)["w"]
    assert float(first) == pytest.approx(1 - 2 / 11)
    late = update_average(average, {"w": jnp.ones(())}, jnp.int32(10_000), 0.99)["w"]
    assert float(late) == pytest.approx(0.01, rel=1e-5)
