"""Which labels the data have, and what that makes of the loss that the experiment asks for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.batches import CountedFrames, LabelledFrame, label_counts
from equijax.train.config import AnyTerm, EnergyTerm, HamiltonianTerm, LossConfig, LossTerm, TargetTerm, TrainingConfig


def refuse_stress_of_direct_forces(experiment: Any) -> None:
    """A model that predicts forces directly has no stress to learn."""
    training = experiment.training
    for stage in range(len(training.stages) + 1):
        if "stress" in training.stage_loss(stage).active and not experiment.model.is_conservative:
            raise EquijaxError(
                f"training.loss.stress: this {experiment.model.name} predicts forces directly and has no stress; "
                "fix: remove the term, or set model.forces to gradient"
            )


def observed_labels(
    training: TrainingConfig,
    train: Sequence[LabelledFrame] | CountedFrames,
    valid: Sequence[LabelledFrame],
    names: Iterable[str],
    data: str = "",
) -> tuple[str, ...]:
    """Which of `names` occur in the training frames as labels; refuses a loss that would have nothing to learn from.

    `data` begins the messages about other frames than those of `dataset`.
    """
    names = tuple(names)
    counts = {"training": label_counts(train, names), "validation": label_counts(valid, names)}
    observed = tuple(name for name in names if counts["training"][name])
    for stage in range(len(training.stages) + 1):
        active = training.stage_loss(stage).active
        if not active:
            raise EquijaxError(f"{data}training.loss: all weights are zero")
        for name, has in counts.items():
            if not any(has[label] for label in active):
                raise EquijaxError(
                    f"{data}training.loss: has weights for {', '.join(active)} and no {name} frame has such a label; "
                    f"found: {', '.join(label for label in names if has[label]) or 'no labels at all'}"
                )
    for name in training.loss.active:
        if name not in observed:
            warnings.warn(
                f"{data}training.loss.{name} has a weight and no training frame has {name}: it contributes nothing",
                EquijaxWarning,
                stacklevel=2,
            )
    for name in observed:
        if name not in training.loss.active and name != "stress":
            warnings.warn(
                f"{data}the training frames have {name} and training.loss gives it no weight",
                EquijaxWarning,
                stacklevel=2,
            )
    return observed


def computed_loss(loss: LossConfig, observed: tuple[str, ...]) -> LossConfig:
    """`loss` for compilation: unit weights, terms without labels left out.

    Stages that differ in weights alone are then equal here and share one compilation.
    """
    terms = {name: loss.terms[name] for name in loss.active if name in observed}
    return LossConfig.of({name: term.model_copy(update={"weight": 1.0}) for name, term in terms.items()})


def measured_loss(loss: LossConfig, observed: tuple[str, ...]) -> LossConfig:
    """`computed_loss` with the labels that are not trained on added, so that validation reports them."""
    terms = computed_loss(loss, observed).terms
    defaults: dict[str, AnyTerm] = {
        "energy": EnergyTerm(),
        "forces": LossTerm(),
        "stress": LossTerm(),
        "hamiltonian": HamiltonianTerm(),
    }
    missing = [name for name in observed if name not in terms and name != "wavefunction"]  # no error of its own
    others: dict[str, AnyTerm] = {name: defaults.get(name, TargetTerm()) for name in missing}
    return LossConfig.of({**terms, **others})
