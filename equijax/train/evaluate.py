"""Errors of a potential on labelled structures: what `equijax evaluate` reports."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.metrics import (
    error_metrics,
    errors_by_config_type,
    errors_by_element,
    has_label,
    refuse_non_finite,
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`metrics` in the layout of `evaluate --json`; the same errors split; predictions frame by frame."""

    metrics: dict[str, Any]
    by_element: dict[str, dict[str, float]]
    by_config_type: dict[str, dict[str, Any]]
    structures: list[Structure]
    predictions: list[dict[str, Any]]


def evaluate(potential: Potential, structures: Sequence[Structure], dtype: DType | None = None) -> Evaluation:
    """Predict every frame, in batches, and compare with the labels that it has.

    Raises EquijaxError when there is no frame or no label, for elements the model does not know, and, with the
    frame's name, for a prediction that is not finite: no average is taken over it.
    """
    frames = list(structures)
    if not frames:
        raise EquijaxError("there are no structures to evaluate")
    wanted = [name for name in ("energy", "forces", "stress") if any(has_label(s, name) for s in frames)]
    if "stress" in wanted and not potential.is_conservative:
        wanted.remove("stress")
        warnings.warn(
            "the stress labels are not compared: this model predicts forces directly and has no stress",
            EquijaxWarning,
            stacklevel=2,
        )
    if not wanted:
        raise EquijaxError(
            f"{frames[0].file or 'the structures'}: no frame has an energy, forces or stress label to compare with"
        )
    with_stress = ["stress" in wanted and has_label(s, "stress") for s in frames]
    predictions: list[dict[str, Any]] = [{} for _ in frames]
    # The stress is asked for only where it is defined and labelled.
    for flag in sorted(set(with_stress)):
        rows = [i for i, s in enumerate(with_stress) if s == flag]
        properties = ("energy", "forces", "stress") if flag else ("energy", "forces")
        for i, prediction in zip(rows, potential.predict([frames[i] for i in rows], properties, dtype=dtype)):
            predictions[i] = prediction
    refuse_non_finite(frames, predictions)
    return Evaluation(
        metrics=error_metrics(frames, predictions),
        by_element=errors_by_element(frames, predictions),
        by_config_type=errors_by_config_type(frames, predictions),
        structures=frames,
        predictions=predictions,
    )
