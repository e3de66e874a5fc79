"""Errors of a potential on labelled structures: what `equijax evaluate` reports."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from equijax.train.uncertainty_metrics import uncertainty_metrics, uncertainty_pairs

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`metrics` in the layout of `evaluate --json`; the same errors split; predictions frame by frame."""

    metrics: dict[str, Any]
    by_element: dict[str, dict[str, float]]
    by_config_type: dict[str, dict[str, Any]]
    structures: list[Structure]
    predictions: list[dict[str, Any]]
    targets: Mapping[str, TargetConfig] = dataclasses.field(default_factory=dict)


def evaluate(
    potential: Potential, structures: Sequence[Structure], dtype: DType | None = None, uncertainty: bool = True
) -> Evaluation:
    """Predict every frame, in batches, and compare with the labels that it has.

    Of a potential with uncertainties they are predicted as well, unless `uncertainty` is False, and compared with the
    errors: in the metrics of a label under `uncertainty`.

    Raises EquijaxError when there is no frame or no label, for elements the model does not know, and, with the
    frame's name, for a prediction that is not finite: no average is taken over it.
    """
    frames = list(structures)
    if not frames:
        raise EquijaxError("there are no structures to evaluate")
    wanted = _compared(potential, frames)
    targets = tuple(name for name in potential.targets if name in wanted)
    with_stress = ["stress" in wanted and has_label(s, "stress") for s in frames]
    predictions: list[dict[str, Any]] = [{} for _ in frames]
    # The stress is asked for only where it is defined and labelled.
    for flag in sorted(set(with_stress)):
        rows = [i for i, s in enumerate(with_stress) if s == flag]
        of_energy = ("energy", "forces") if {"energy", "forces", "stress"} & set(wanted) else ()
        stress = ("stress",) if flag else ()
        found = [n for n in potential.uncertainties if uncertainty and n.split("_")[0] in (*of_energy, *stress)]
        properties = (*of_energy, *stress, *found, *targets)
        for i, prediction in zip(rows, potential.predict([frames[i] for i in rows], properties, dtype=dtype)):
            predictions[i] = prediction
    refuse_non_finite(frames, predictions)
    metrics = error_metrics(frames, predictions, potential.targets)
    pairs = uncertainty_pairs(frames, predictions)
    kind = "committee" if potential.committee else "last_layer"
    for name, entry in uncertainty_metrics(pairs, kind, potential.calibration is not None).items():
        metrics[name]["uncertainty"] = entry
    return Evaluation(
        metrics=metrics,
        by_element=errors_by_element(frames, predictions),
        by_config_type=errors_by_config_type(frames, predictions, potential.targets),
        structures=frames,
        predictions=predictions,
        targets=potential.targets,
    )


def _compared(potential: Potential, frames: Sequence[Structure]) -> tuple[str, ...]:
    """Labels that some frame has and the potential predicts; warns of the others, refuses when there is none."""
    labels = ("energy", "forces", "stress", *potential.targets)
    wanted = [name for name in labels if any(has_label(s, name) for s in frames)]
    if not wanted:
        raise EquijaxError(
            f"{frames[0].file or 'the structures'}: no frame has a label of {', '.join(labels)} to compare with"
        )
    reasons = {"stress": "predicts forces directly and has no stress"} if not potential.is_conservative else {}
    if not potential.has_energy:
        reasons = dict.fromkeys(("energy", "forces", "stress"), "was trained on targets alone and has no energy")
    for name in [name for name in wanted if name in reasons]:
        wanted.remove(name)
        warnings.warn(f"the {name} labels are not compared: this model {reasons[name]}", EquijaxWarning, stacklevel=3)
    if not wanted:
        raise EquijaxError(
            f"{frames[0].file or 'the structures'}: the model predicts none of the labels; expected "
            f"{' or '.join(potential.targets or labels)}"
        )
    return tuple(wanted)
