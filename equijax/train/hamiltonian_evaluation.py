"""Errors of a model of Hamiltonians on labelled molecules: what `equijax evaluate` reports for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from equijax.errors import EquijaxError, located
from equijax.hamiltonians.metrics import hamiltonian_metrics
from equijax.hamiltonians.model import HamiltonianModel
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.evaluate import Evaluation


def evaluate_hamiltonians(
    model: HamiltonianModel, structures: Sequence[Structure], dtype: DType | None = None
) -> Evaluation:
    """Predict every molecule and compare with its Hamiltonian.

    H0 and S are those of the data where they are there. Raises EquijaxError when there is no structure, and, with the
    frame's name, for one without a Hamiltonian and for a prediction that is not finite.
    """
    frames = list(structures)
    if not frames:
        raise EquijaxError("there are no structures to evaluate")
    for frame in frames:
        if "hamiltonian" not in frame.labels:
            raise located(
                "missing: there is nothing to compare with", file=frame.file, frame=frame.frame, key="hamiltonian"
            )
    predictions = model.predict(frames, ("hamiltonian",), dtype=dtype)
    matrices = [prediction["hamiltonian"] for prediction in predictions]
    groups: dict[str, list[int]] = defaultdict(list)
    for i, frame in enumerate(frames):
        if "config_type" in frame.info:
            groups[str(frame.info["config_type"])].append(i)
    return Evaluation(
        metrics=hamiltonian_metrics(frames, matrices, model.layout),
        by_element={},
        by_config_type={
            name: hamiltonian_metrics([frames[i] for i in rows], [matrices[i] for i in rows], model.layout)
            for name, rows in sorted(groups.items())
        },
        structures=frames,
        predictions=predictions,
    )
