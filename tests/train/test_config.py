"""What `training:` accepts, and what it refuses."""

from __future__ import annotations

import pytest

from equijax.config.yaml import validate
from equijax.errors import EquijaxError
from equijax.train.config import EnergyTerm, LossConfig, LossTerm, TargetTerm, TrainingConfig


def test_defaults_are_those_of_the_mace_command_line():
    training = TrainingConfig()
    assert training.optimizer.amsgrad
    assert training.optimizer.learning_rate == 0.01
    assert (training.loss.energy.weight, training.loss.forces.weight) == (1.0, 100.0)
    assert training.loss.active == ("energy", "forces")
    assert training.schedule.name == "plateau"
    assert (training.schedule.factor, training.schedule.patience) == (0.8, 50)
    assert training.clip_grad_norm == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optimiser": {}}, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name: got 'sgd'"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate: got -1"),
        ({"batch": {}}, "give at least one of max_structures"),
        ({"loss": {"targets": {"alpha": {"kind": "conditional_huber"}}}}, "loss.targets.alpha.kind"),
        ({"loss": {"targets": {"alpha": {"per_irrep": {"0e": -1}}}}}, "loss.targets.alpha.per_irrep.0e"),
        ({"loss": {"energy": {"kind": "conditional_huber"}}}, "conditional_huber is for forces"),
        ({"schedule": {"name": "cosin"}}, "unknown name 'cosin'; did you mean 'cosine'?"),
        ({"stages": [{"from_epoch": 20}, {"from_epoch": 10}]}, "from_epoch must ascend"),
        ({"max_epochs": 5, "stages": [{"from_epoch": 5}]}, "is never reached"),
        ({"on_nan": "skip"}, "on_nan"),
        ({"keep_checkpoints": 1}, "keep_checkpoints"),
    ],
)
def test_mistakes_are_named(data, message):
    with pytest.raises(EquijaxError) as error:
        validate(TrainingConfig, data, "config.yaml")
    assert message in str(error.value)


def test_stages_change_loss_and_rate_from_where_they_begin():
    second = LossConfig(energy=EnergyTerm(weight=1000), forces=LossTerm(weight=100))
    training = TrainingConfig(stages=[{"from_epoch": 75, "learning_rate": 1e-3, "loss": second.model_dump()}])
    assert training.stage_loss(0) == training.loss
    assert training.stage_loss(1) == second
    assert (training.stage_learning_rate(0), training.stage_learning_rate(1)) == (None, 1e-3)


def test_skipping_counts():
    assert TrainingConfig().allowed_skips == 0
    assert TrainingConfig(on_nan={"skip": 3}).allowed_skips == 3


def test_targets_have_a_term_unless_they_are_left_out():
    loss = LossConfig(targets={"dipole": None, "alpha": TargetTerm(weight=2)}).for_labels(
        ["dipole", "alpha", "q"], ["q"]
    )
    assert loss.active == ("alpha", "q")
    assert (loss.terms["alpha"].weight, loss.terms["q"].weight) == (2, 1)
    # Default terms go where the data have no such labels; terms that were asked for stay, to be complained about.
    assert LossConfig().for_labels(["q"], ["energy", "q"]).active == ("energy", "q")
    assert LossConfig(forces=LossTerm()).for_labels(["q"], ["q"]).active == ("forces", "q")
    assert LossConfig().for_labels([], []).active == ("energy", "forces")
