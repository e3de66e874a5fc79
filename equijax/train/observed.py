"""Which labels the data have, and what that makes of the loss that the experiment asks for."""

from __future__ import annotations

import warnings
from typing import Any

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.batches import LABELS, LabelledFrame, label_counts
from equijax.train.config import EnergyTerm, LossConfig, LossTerm, TrainingConfig


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
    training: TrainingConfig, train: list[LabelledFrame], valid: list[LabelledFrame], data: str = ""
) -> tuple[str, ...]:
    """Labels that occur in the training frames; refuses a loss that would have nothing to learn from.

    `data` begins the messages about other frames than those of `dataset`.
    """
    counts = {"training": label_counts(train), "validation": label_counts(valid)}
    observed = tuple(name for name in LABELS if counts["training"][name])
    for stage in range(len(training.stages) + 1):
        active = training.stage_loss(stage).active
        for name, has in counts.items():
            if not any(has[label] for label in active):
                raise EquijaxError(
                    f"{data}training.loss: has weights for {', '.join(active)} and no {name} frame has such a label; "
                    f"found: {', '.join(label for label in LABELS if has[label]) or 'no labels at all'}"
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
    terms: dict[str, LossTerm | None] = {}
    for name in LABELS:
        term = getattr(loss, name)
        active = name in loss.active and name in observed
        terms[name] = term.model_copy(update={"weight": 1.0}) if active else None
    return LossConfig(**terms)  # type: ignore[arg-type]


def measured_loss(loss: LossConfig, observed: tuple[str, ...]) -> LossConfig:
    """`computed_loss` with the labels that are not trained on added, so that validation reports them."""
    terms = {name: getattr(computed_loss(loss, observed), name) for name in LABELS}
    missing: dict[str, LossTerm] = {"energy": EnergyTerm(), "forces": LossTerm(), "stress": LossTerm()}
    terms |= {name: missing[name] for name in observed if terms[name] is None}
    return LossConfig(**terms)
