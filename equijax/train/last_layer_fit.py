"""Uncertainties of the last layer for a trained model: their matrix from training frames, their scale from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.graph.batching import StructureGraph, batch, structure_graph, unbatch_nodes
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.last_layer import LastLayer, feature_columns
from equijax.potential.potential import Potential
from equijax.potential.prediction import batch_vectors, has_stress, similar_batches
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.evaluate import evaluate
from equijax.train.metrics import has_label
from equijax.train.uncertainty_metrics import fitted_calibration

RELATIVE_REGULARISERS = tuple(10.0**power for power in np.arange(-10, 1.25, 0.5))
"""Tried as multiples of the mean eigenvalue of the matrix."""

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class FrameFeatures:
    """Invariant features of one structure: `values` [P]; minus their derivatives by the positions, `forces` [3N, P] in
    1/Å, and by strain over the volume, `stress` [9, P] in 1/Å³, both None where they were not asked for."""

    values: np.ndarray
    forces: np.ndarray | None
    stress: np.ndarray | None


def with_last_layer(
    potential: Potential,
    train: Sequence[Structure],
    valid: Sequence[Structure],
    use_forces: bool = True,
    dtype: DType | None = None,
    report: Report = lambda line: None,
) -> Potential:
    """The model with uncertainties of the last layer.

    `train` are the frames it was trained on. Their labels are not read; the derivatives of their features enter the
    matrix where a frame has forces and `use_forces` is True. The regulariser is the one with the highest likelihood of
    the errors on `valid`, the sum of the means over energies per atom, force components and stress components; of each
    the scale is fitted too. Raises EquijaxError for a committee, which has uncertainties already, for models without
    energies or without invariant features, and without labels in `valid`.
    """
    if potential.committee is not None:
        raise EquijaxError("this is a committee, whose spread is its uncertainty; choose a member for the last layer")
    if not potential.has_energy:
        raise EquijaxError("this model was trained on targets alone and has no energy to be uncertain of")
    if not train:
        raise EquijaxError("there are no training frames")
    plain = dataclasses.replace(potential, last_layer=None, calibration=None)
    evaluator = plain.evaluator(dtype)
    use_forces = use_forces and plain.is_conservative
    validation = evaluate(plain, valid, dtype=dtype)
    weight = energy_weight(validation.metrics) if use_forces else 1.0
    gram, forces_used = gram_matrix(evaluator, train, use_forces, weight, report)
    found, best = fitted(evaluator, gram, valid, validation.predictions, report)
    calibration = fitted_calibration({name: part["factor"] for name, part in best.items()})
    record = {
        "kind": "last_layer",
        "features": len(gram),
        "training_frames": len(train),
        "training_forces": forces_used,
        "energy_weight": weight,
        "validation_frames": len(valid),
        "regulariser": found,
        "relative_regulariser": found / float(np.mean(np.diag(gram))),
        "factors": dataclasses.asdict(calibration),
    }
    return dataclasses.replace(
        plain,
        last_layer=LastLayer(gram, found),
        calibration=calibration,
        metadata={**potential.metadata, "uncertainty": record},
    )


def energy_weight(metrics: dict[str, Any]) -> float:
    """What an energy per atom counts in the matrix when a force component counts 1, in 1/Å²: the ratio of the mean
    squared errors of forces and energies, as in weighted least squares; 1 where one is not known."""
    energy, forces = metrics.get("energy", {}).get("rmse_per_atom", 0.0), metrics.get("forces", {}).get("rmse", 0.0)
    return float((forces / energy) ** 2) if energy > 0 and forces > 0 else 1.0


def gram_matrix(
    evaluator: Evaluator, train: Sequence[Structure], use_forces: bool, weight: float, report: Report
) -> tuple[np.ndarray, int]:
    """(weight Σ (f/N)(f/N)ᵀ [P, P] in float64, with Σ over force components of labelled frames; their number)."""
    size = len(feature_columns(evaluator.potential.model_config))
    gram, components, done = np.zeros((size, size)), 0, 0
    for rows, features in frame_features(evaluator, train, use_forces):
        for index, frame in zip(rows, features, strict=True):
            row = frame.values / len(train[index])
            gram += weight * np.outer(row, row)
            if frame.forces is not None and "forces" in train[index].labels:
                gram += frame.forces.T @ frame.forces
                components += len(frame.forces)
        done += len(rows)
        report(f"training frames: {done} of {len(train)}")
    if not np.isfinite(gram).all():
        raise EquijaxError("the features of the training frames are not finite; did the training of the model diverge?")
    if not np.trace(gram) > 0:
        raise EquijaxError("the features of all training frames are zero; they say nothing about the energy")
    return 0.5 * (gram + gram.T), components


def fitted(
    evaluator: Evaluator,
    gram: np.ndarray,
    valid: Sequence[Structure],
    predictions: Sequence[dict[str, Any]],
    report: Report,
) -> tuple[float, dict[str, dict[str, float]]]:
    """(regulariser, `{label: {"factor", "nll"}}`) with the highest likelihood of the errors on `valid`."""
    values, axes = np.linalg.eigh(gram)
    tried = np.mean(np.diag(gram)) * np.array(RELATIVE_REGULARISERS)
    inverse = 1 / (np.maximum(values, 0)[:, None] + tried)  # [P, tried]
    sums: dict[str, list[np.ndarray]] = {}
    done = 0
    for rows, features in frame_features(evaluator, valid, evaluator.potential.is_conservative):
        for index, frame in zip(rows, features, strict=True):
            structure, prediction = valid[index], predictions[index]
            scale = 1 / len(structure)
            parts = {"energy": frame.values[None] * scale, "forces": frame.forces, "stress": frame.stress}
            for name, part in parts.items():
                if part is None or not has_label(structure, name) or name not in prediction:
                    continue
                error = np.asarray(prediction[name] - structure.labels[name], np.float64).reshape(-1, 1)
                variance = (part @ axes) ** 2 @ inverse  # [values, tried]
                error, variance = error * (scale if name == "energy" else 1), variance
                known = variance.min(axis=1) > 0
                terms = [np.sum(known), np.sum(error[known] ** 2 / variance[known], axis=0)]
                terms.append(np.sum(np.log(variance[known]), axis=0))
                old = sums.get(name, [0.0, 0.0, 0.0])
                sums[name] = [a + b for a, b in zip(old, terms, strict=True)]
        done += len(rows)
        report(f"validation frames: {done} of {len(valid)}")
    likelihoods = {}
    for name, (count, squares, logarithms) in sums.items():
        if count:
            square = squares / count
            likelihoods[name] = (square, 0.5 * (np.log(2 * np.pi * square) + logarithms / count + 1))
    if not likelihoods:
        raise located("no validation frame has energies or forces", file=valid[0].file, key="--valid")
    chosen = int(np.argmin(np.sum([nll for _, nll in likelihoods.values()], axis=0)))
    best = {
        name: {"factor": float(np.sqrt(square[chosen])), "nll": float(nll[chosen])}
        for name, (square, nll) in likelihoods.items()
    }
    return float(tried[chosen]), best


def frame_features(
    evaluator: Evaluator, structures: Sequence[Structure], derivatives: bool
) -> Iterator[tuple[list[int], list[FrameFeatures]]]:
    """(indices, their features in float64), batch by batch; the stress where the structure has one."""
    potential = evaluator.potential
    graphs = [structure_graph(structure, potential.cutoff, potential.elements) for structure in structures]
    for indices in similar_batches(graphs):
        members = [graphs[i] for i in indices]
        capacity = evaluator.capacity(
            sum(g.num_nodes for g in members), max(g.max_neighbors for g in members), len(members)
        )
        graph = batch(members, capacity, evaluator.dtype)
        vectors = pad_vectors(graph, *batch_vectors(members))
        yield indices, _features(evaluator, graph, vectors, members, [structures[i] for i in indices], derivatives)


def _features(
    evaluator: Evaluator,
    graph: Any,
    vectors: np.ndarray,
    members: Sequence[StructureGraph],
    structures: Sequence[Structure],
    derivatives: bool,
) -> list[FrameFeatures]:
    if not derivatives:
        features = evaluator.node_outputs(graph, vectors).node_features
        chosen = features[:, feature_columns(evaluator.potential.model_config)].astype(np.float64)
        return [FrameFeatures(rows.sum(axis=0), None, None) for rows in unbatch_nodes(chosen, members)]
    values, forces, stress = evaluator.features(graph, vectors)
    by_frame = unbatch_nodes(np.moveaxis(forces, 0, -1), members)
    size = values.shape[1]
    found = []
    for index, (structure, force) in enumerate(zip(structures, by_frame, strict=True)):
        strain = stress[:, index].reshape(size, 9).T.astype(np.float64) if has_stress(structure) else None
        found.append(
            FrameFeatures(values[index].astype(np.float64), force.reshape(-1, size).astype(np.float64), strain)
        )
    return found
