"""Frozen parameters keep every bit, groups learn at their own rate, and a name that means nothing is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.models import MODELS
from equijax.train.checkpoint import CheckpointStore
from equijax.train.config import TrainingConfig
from equijax.train.optimizer import build_optimizer
from equijax.train.parameter_groups import describe_groups, learning_rate_factors, merged, trained_and_frozen
from equijax.weights import load
from tests.toy_model import ToyConfig
from tests.train.toy_training import digest, run

PARAMS = {
    "interactions_0": {"linear": {"0e": np.ones(3), "1o": np.full(2, 2.0)}},
    "readouts_0": {"0e": np.full(4, 3.0)},
    "readouts_1": {"0e": np.full(4, -0.0)},
}


def training(frozen=(), *groups, **options):
    return TrainingConfig(
        frozen_parameters=frozen,
        learning_rate_groups=[{"parameters": p, "factor": f} for p, f in groups],
        **options,
    )


def test_factors_name_whole_paths():
    config = training([r"interactions_\d+/.*"], (["readouts_0/0e"], 0.1))
    factors = learning_rate_factors(config, PARAMS)
    assert factors == {"interactions_0/linear/0e": 0.0, "interactions_0/linear/1o": 0.0, "readouts_0/0e": 0.1}
    assert describe_groups(config, PARAMS) == [
        "5 of 13 parameters frozen: interactions_0/linear/0e, interactions_0/linear/1o",
        "4 of 13 parameters with 0.1 x the learning rate: readouts_0/0e",
    ]
    assert learning_rate_factors(TrainingConfig(), PARAMS) == {}


def test_parts_are_complementary_and_merge_to_the_whole():
    trained, frozen = trained_and_frozen(PARAMS, {"readouts_0/0e": 0.0, "readouts_1/0e": 0.5})
    assert [leaf.size for leaf in jax.tree.leaves(trained)] == [3, 2, 4]
    assert [leaf.size for leaf in jax.tree.leaves(frozen)] == [4]
    whole = merged(trained, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(PARAMS), strict=True))
    assert trained_and_frozen(PARAMS, {"readouts_0/0e": 0.5}) == (PARAMS, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (training(["readout_0/.*"]), r"training.frozen_parameters: 'readout_0/\.\*' matches no parameter; expected a"),
        (training(["readouts_0"]), "'readouts_0' matches no parameter.*did you mean 'readouts_0/.\\*'"),
        (training(["("]), r"training.frozen_parameters: '\(' is not a regular expression"),
        (training((), (["a"], 0.1)), "training.learning_rate_groups.0: 'a' matches no parameter"),
        (
            training(["readouts_.*"], ([".*/0e"], 0.1)),
            "groups.0: .* readouts_0/0e, which training.frozen_param",
        ),
        (training((), (["readouts_0/0e"], 0.1), ([".*"], 0.2)), "groups.1: .* which training.learning_rate_groups.0"),
        (training([".*"]), "matches every parameter, so nothing would be trained"),
    ],
)
def test_names_that_mean_nothing_or_two_things_are_refused(config, message):
    with pytest.raises(EquijaxError, match=message):
        learning_rate_factors(config, PARAMS)


def test_a_factor_scales_the_step_and_the_decay_of_adamw():
    config = TrainingConfig(optimizer={"name": "adamw", "weight_decay": 0.5, "decay_parameters": [".*"]}).optimizer
    gradient = jax.tree.map(np.ones_like, PARAMS)
    steps = []
    for factors in (None, {"readouts_0/0e": 0.25}):
        optimizer = build_optimizer(config, PARAMS, factors)
        steps.append(optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0])
    np.testing.assert_allclose(steps[1]["readouts_0"]["0e"], 0.25 * steps[0]["readouts_0"]["0e"], rtol=1e-7)
    np.testing.assert_array_equal(steps[1]["readouts_1"]["0e"], steps[0]["readouts_1"]["0e"])


def test_frozen_parameters_keep_every_bit_and_take_no_room(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    options = {"max_epochs": 2, "optimizer": {"weight_decay": 0.1, "decay_parameters": [".*"]}}
    initial = load(run(tmp_path / "start", {**options, "optimizer": {"learning_rate": 1e-30}}) / "model.safetensors")
    directory = run(tmp_path / "frozen", {**options, "frozen_parameters": ["embedding"]})
    params = load(directory / "model.safetensors").params
    np.testing.assert_array_equal(params["embedding"], initial.params["embedding"])
    assert np.abs(params["readout"] - initial.params["readout"]).min() > 1e-4
    store = CheckpointStore(directory / "checkpoints")
    arrays = (store.path(store.steps()[-1]) / "manifest.json").read_text()
    assert "state.frozen.embedding" in arrays
    assert "opt_state.1.first.readout" in arrays
    assert "first.embedding" not in arrays
    assert "average.embedding" not in arrays
    before = digest(directory)
    whole = run(tmp_path / "longer", {**options, "frozen_parameters": ["embedding"], "max_epochs": 1})
    assert digest(run(whole, {**options, "frozen_parameters": ["embedding"]})) == before
