"""Errors of predictions against labels, in numpy float64: per set, per element and per config_type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.errors import located
from equijax.structure import Structure
from equijax.train.target_metrics import target_metrics

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig


def rmse_mae(errors: np.ndarray, suffix: str = "") -> dict[str, float]:
    """`{"rmse": ..., "mae": ...}` over all values."""
    flat = np.asarray(errors, np.float64).ravel()
    return {f"rmse{suffix}": float(np.sqrt(np.mean(flat**2))), f"mae{suffix}": float(np.mean(np.abs(flat)))}


def labelled_stress(structure: Structure) -> bool:
    """True when the frame has a stress label that means something (a cell with a volume, periodic)."""
    return "stress" in structure.labels and all(structure.pbc) and structure.volume > 0


def has_label(structure: Structure, name: str) -> bool:
    return labelled_stress(structure) if name == "stress" else name in structure.labels


def refuse_non_finite(structures: Sequence[Structure], predictions: Sequence[Mapping[str, Any]]) -> None:
    """Raise EquijaxError that names the first frame with a NaN or infinite prediction."""
    for structure, prediction in zip(structures, predictions, strict=True):
        for key, value in prediction.items():
            if not np.isfinite(value).all():
                raise located(
                    "the prediction is not finite",
                    file=structure.file,
                    frame=structure.frame,
                    config_type=structure.info.get("config_type"),
                    key=key,
                    fix="look for atoms that are very close together, or for a model whose training diverged",
                )


def error_metrics(
    structures: Sequence[Structure],
    predictions: Sequence[Mapping[str, Any]],
    targets: Mapping[str, TargetConfig] | None = None,
) -> dict[str, Any]:
    """`{"n_structures": ..., "energy": {rmse, mae, rmse_per_atom, mae_per_atom}, "forces": {...}, TARGET: {...}, ...}`.

    eV, eV/Å, eV/Å³; a key is there exactly when some frame has the label and it was predicted, and counts only such
    frames: models that predict forces directly have no stress, models of targets alone no energy. For a target see
    `target_metrics`.
    """
    metrics: dict[str, Any] = {"n_structures": len(structures)}
    pairs = list(zip(structures, predictions, strict=True))
    energy = [(s, p) for s, p in pairs if has_label(s, "energy") and "energy" in p]
    if energy:
        errors = np.array([float(p["energy"]) - float(s.labels["energy"]) for s, p in energy])
        atoms = np.array([len(s) for s, _ in energy])
        metrics["energy"] = rmse_mae(errors) | rmse_mae(errors / atoms, "_per_atom")
    for name in ("forces", "stress"):
        errors_by_frame = [(p[name] - s.labels[name]).ravel() for s, p in pairs if has_label(s, name) and name in p]
        if errors_by_frame:
            metrics[name] = rmse_mae(np.concatenate(errors_by_frame))
    for name, config in (targets or {}).items():
        if found := target_metrics(name, config, structures, predictions):
            metrics[name] = found
    return metrics


def errors_by_config_type(
    structures: Sequence[Structure],
    predictions: Sequence[Mapping[str, Any]],
    targets: Mapping[str, TargetConfig] | None = None,
) -> dict[str, dict[str, Any]]:
    """`error_metrics` of the frames of each config_type; frames without one are under "(none)"."""
    groups: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        groups.setdefault(str(structure.info.get("config_type", "(none)")), []).append(index)
    return {
        name: error_metrics([structures[i] for i in rows], [predictions[i] for i in rows], targets)
        for name, rows in sorted(groups.items())
    }


def errors_by_element(
    structures: Sequence[Structure], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Force errors per element, `{"H": {"rmse": eV/Å, "mae": eV/Å, "n_atoms": int}, ...}`."""
    from ase.data import chemical_symbols

    errors: dict[int, list[np.ndarray]] = {}
    for structure, prediction in zip(structures, predictions, strict=True):
        if not has_label(structure, "forces") or "forces" not in prediction:
            continue
        difference = prediction["forces"] - structure.labels["forces"]
        for z in np.unique(structure.atomic_numbers):
            errors.setdefault(int(z), []).append(difference[structure.atomic_numbers == z])
    result: dict[str, dict[str, float]] = {}
    for z, parts in sorted(errors.items()):
        joined = np.concatenate(parts)
        result[chemical_symbols[z]] = rmse_mae(joined) | {"n_atoms": len(joined)}
    return result


def one_line(metrics: dict[str, Any], targets: Mapping[str, TargetConfig] | None = None) -> str:
    """`20 frames, energy RMSE 1.23 meV/atom, forces RMSE 45.6 meV/Å, dipole RMSE 0.01 (1.2 %)`."""
    parts = [f"{metrics['n_structures']} frames"]
    if "energy" in metrics:
        parts.append(f"energy RMSE {1000 * metrics['energy']['rmse_per_atom']:.3g} meV/atom")
    for name, unit in (("forces", "meV/Å"), ("stress", "meV/Å³")):
        if name in metrics:
            parts.append(f"{name} RMSE {1000 * metrics[name]['rmse']:.3g} {unit}")
    for name, config in (targets or {}).items():
        if name in metrics:
            relative = f" ({100 * metrics[name]['relative']:.3g} %)" if "relative" in metrics[name] else ""
            parts.append(f"{name} RMSE {metrics[name]['rmse']:.4g}{f' {config.unit}' if config.unit else ''}{relative}")
    return ", ".join(parts)
