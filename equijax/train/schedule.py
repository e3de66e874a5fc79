"""The learning rate as a function of where the run is, and the plateau rule's memory."""

from __future__ import annotations

import dataclasses
import math

from equijax.train.config import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PlateauSchedule,
    TrainingConfig,
)


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """`factor` multiplies the rate; `best` loss so far (None before the first), `bad` evaluations since."""

    factor: float = 1.0
    best: float | None = None
    bad: int = 0


def after_evaluation(schedule: PlateauSchedule, state: PlateauState, loss: float, rate: float) -> PlateauState:
    """torch's ReduceLROnPlateau (mode min, relative threshold) for one more validation loss.

    `rate` is the optimizer's learning rate: the factor never takes it below `min_learning_rate`.
    """
    if state.best is None or loss < state.best * (1 - schedule.threshold):
        return PlateauState(state.factor, loss, 0)
    if state.bad + 1 <= schedule.patience:
        return PlateauState(state.factor, state.best, state.bad + 1)
    factor = max(state.factor * schedule.factor, schedule.min_learning_rate / rate)
    return PlateauState(min(factor, state.factor), state.best, 0)


def learning_rate(
    training: TrainingConfig, stage: int, step: int, epoch: int, epoch_fraction: float, plateau: PlateauState
) -> float:
    """Learning rate of the step with number `step` (from 0), `epoch_fraction` of the way through `epoch`."""
    constant = training.stage_learning_rate(stage)
    if constant is not None:
        return constant
    schedule = training.schedule
    rate = training.optimizer.learning_rate
    if schedule.warmup_steps:
        rate *= min(1.0, (step + 1) / schedule.warmup_steps)
    if isinstance(schedule, PlateauSchedule):
        return rate * plateau.factor
    if isinstance(schedule, CosineSchedule):
        progress = min(1.0, (epoch + epoch_fraction) / (schedule.epochs or training.max_epochs))
        wave = 0.5 * (1 + math.cos(math.pi * progress))
        return rate * (schedule.final_fraction + (1 - schedule.final_fraction) * wave)
    if isinstance(schedule, LinearSchedule):
        progress = min(1.0, (epoch + epoch_fraction) / (schedule.epochs or training.max_epochs))
        return rate * (1 - (1 - schedule.final_fraction) * progress)
    if isinstance(schedule, ExponentialSchedule):
        return rate * schedule.decay**epoch
    return rate
