"""Errors of predicted tensors against labels, in numpy float64: by irrep, by component, and by what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.irreps.voigt import to_mandel_matrix
from equijax.models.target_labels import cartesian_value, has_minor_symmetry
from equijax.structure import Structure
from equijax.train.target_loss import cartesian_components, columns_by_irrep

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig

DIRECTIONS = 250
"""Unit vectors n for which C_nnnn is compared, as in arXiv 2401.16914; the same ones every time."""


def label_value(config: TargetConfig, label: np.ndarray) -> np.ndarray:
    """A label of a structure in the form of `Potential.predict`."""
    return cartesian_value(config, np.asarray(label, np.float64))


def target_metrics(
    name: str, config: TargetConfig, structures: Sequence[Structure], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Errors of one target over the structures that are labelled, in its unit; empty without labels.

    `rmse`, `mae` over all elements of the tensors; `relative`, the root of Σ‖error‖² / Σ‖label‖²; `by_irrep` and
    `by_component` with rmse and mae each; for symmetric matrices and stiffness tensors `not_positive_definite`, the
    shares of labels and predictions that are not; for stiffness `directional`, errors of C_nnnn over random n.
    """
    pairs = [(s.labels[name], p[name]) for s, p in zip(structures, predictions, strict=True) if name in s.labels]
    if not pairs:
        return {}
    labels = np.concatenate([_rows(np.asarray(label, np.float64), config.components.dim) for label, _ in pairs])
    shape = np.shape(label_value(config, labels))[1:]
    predicted = np.concatenate([np.asarray(value, np.float64).reshape(-1, *shape) for _, value in pairs])
    truth = label_value(config, labels)
    error = predicted - truth
    size = float(np.sqrt(np.sum(truth**2)))
    metrics: dict[str, Any] = rmse_mae(error)
    if size > 0:
        metrics["relative"] = float(np.sqrt(np.sum(error**2))) / size
    components = _rows(error, config.components.dim) if config.cartesian is None else config.cartesian.to_irreps(error)
    metrics["by_irrep"] = {irrep: rmse_mae(components[:, c]) for irrep, c in columns_by_irrep(config).items()}
    places = cartesian_components(config)
    if places:
        metrics["by_component"] = {component: rmse_mae(error[(slice(None), *p)]) for component, p in places.items()}
    matrices = {kind: _matrices(config, value) for kind, value in (("labels", truth), ("predictions", predicted))}
    if matrices["labels"] is not None:
        metrics["not_positive_definite"] = {kind: _negative_share(value) for kind, value in matrices.items()}
    if len(shape) == 4:
        metrics["directional"] = _directional(truth, predicted)
    return metrics


def rmse_mae(errors: np.ndarray) -> dict[str, float]:
    return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


def _rows(values: np.ndarray, dim: int) -> np.ndarray:
    return values.reshape(-1, dim)


def _matrices(config: TargetConfig, tensors: np.ndarray) -> np.ndarray | None:
    """Symmetric matrices whose eigenvalues are those of the tensors; None for tensors that have none, or are
    traceless."""
    tensor = config.cartesian
    if tensor is None or tensor.traceless:
        return None
    if tensor.rank == 2 and tensor.is_fully_symmetric:
        return tensors
    if tensor.rank == 4 and has_minor_symmetry(tensor) and np.allclose(tensors, np.moveaxis(tensors, (1, 2), (3, 4))):
        return np.asarray(to_mandel_matrix(tensors))
    return None


def _negative_share(matrices: np.ndarray | None) -> float:
    """Share of the matrices with an eigenvalue that is not positive."""
    assert matrices is not None
    return float(np.mean(np.linalg.eigvalsh(matrices)[:, 0] <= 0))


def _directional(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Errors of T_nnnn, and their mean absolute value relative to the mean of the labels."""
    n = np.random.default_rng(0).normal(size=(DIRECTIONS, 3))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    along, guessed = (np.einsum("sijkl,ni,nj,nk,nl->sn", t, n, n, n, n, optimize=True) for t in (truth, predicted))
    metrics = rmse_mae(guessed - along)
    mean = abs(float(along.mean()))
    return metrics | ({"mae_relative": metrics["mae"] / mean} if mean > 0 else {})
