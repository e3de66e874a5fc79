"""Learning rates at given points of a run."""

from __future__ import annotations

import pytest

from equijax.train.config import PlateauSchedule, TrainingConfig
from equijax.train.schedule import PlateauState, after_evaluation, learning_rate


def rate(schedule, step=0, epoch=0, fraction=0.0, stage=0, plateau=None, **training):
    config = TrainingConfig(optimizer={"learning_rate": 0.1}, schedule=schedule, max_epochs=100, **training)
    return learning_rate(config, stage, step, epoch, fraction, plateau or PlateauState())


def test_constant_with_warm_up():
    schedule = {"name": "constant", "warmup_steps": 10}
    assert rate(schedule, step=0) == pytest.approx(0.01)
    assert rate(schedule, step=4) == pytest.approx(0.05)
    assert rate(schedule, step=500) == 0.1


def test_cosine():
    schedule = {"name": "cosine", "final_fraction": 0.1}
    assert rate(schedule) == pytest.approx(0.1)
    assert rate(schedule, epoch=50) == pytest.approx(0.055)
    assert rate(schedule, epoch=49, fraction=1.0) == pytest.approx(0.055)
    assert rate(schedule, epoch=100) == pytest.approx(0.01)
    assert rate({**schedule, "epochs": 10}, epoch=70) == pytest.approx(0.01)


def test_exponential_steps_once_an_epoch():
    schedule = {"name": "exponential", "decay": 0.5}
    assert rate(schedule, epoch=3) == pytest.approx(0.0125)
    assert rate(schedule, epoch=3, fraction=0.9) == pytest.approx(0.0125)


def test_plateau_lowers_after_patience_is_used_up():
    schedule = PlateauSchedule(factor=0.5, patience=2, min_learning_rate=0.03)
    state = PlateauState()
    seen = []
    for loss in (1.0, 0.9, 0.9, 0.89999, 0.9, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        state = after_evaluation(schedule, state, loss, 0.1)
        seen.append(state.factor)
    # best 0.9 at the second; two bad ones tolerated (0.89999 is within the threshold), the third lowers
    assert seen[:6] == [1, 1, 1, 1, 0.5, 0.5]
    assert seen[8] == pytest.approx(0.3)
    assert seen[-1] == pytest.approx(0.3)
    assert rate({"name": "plateau"}, plateau=PlateauState(factor=0.3)) == pytest.approx(0.03)


def test_a_stage_with_a_rate_overrides_the_schedule():
    stages = [{"from_epoch": 10, "learning_rate": 1e-3}]
    assert rate({"name": "cosine"}, stage=1, epoch=20, stages=stages) == 1e-3
    stages = [{"from_epoch": 10}]
    assert rate({"name": "exponential", "decay": 0.5}, stage=1, epoch=2, stages=stages) == pytest.approx(0.025)
