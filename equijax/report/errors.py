"""Errors split by element and by config_type, and the frames that are worst."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from equijax.report.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class ErrorRow:
    """Errors of one group: meV/atom, meV/Å, meV/Å³; NaN where the group has no such label."""

    name: str
    count: int
    energy_rmse: float
    energy_mae: float
    forces_rmse: float
    forces_mae: float
    forces_max: float
    stress_rmse: float


@dataclasses.dataclass(frozen=True)
class WorstFrame:
    """One structure of a set and its errors: meV/atom, meV/Å."""

    index: int
    file: str
    frame: int
    config_type: str
    num_atoms: int
    energy_error: float
    forces_rmse: float
    forces_max: float
    worst_atom: int


def error_row(name: str, predictions: Predictions, frames: np.ndarray | None = None) -> ErrorRow:
    """Errors over the structures in `frames` (boolean mask [S]), or over all."""
    chosen = np.ones(len(predictions), bool) if frames is None else frames
    energy = 1e3 * ((predictions.energy_pred - predictions.energy_true) / predictions.num_atoms)[chosen]
    forces = 1e3 * (predictions.forces_pred - predictions.forces_true)[chosen[predictions.frame_of_atom]]
    stress = 1e3 * (predictions.stress_pred - predictions.stress_true)[chosen]
    return ErrorRow(
        name=name,
        count=int(chosen.sum()),
        energy_rmse=_rmse(energy),
        energy_mae=_mae(energy),
        forces_rmse=_rmse(forces),
        forces_mae=_mae(forces),
        forces_max=_max(forces),
        stress_rmse=_rmse(stress),
    )


def rows_by_config_type(predictions: Predictions) -> list[ErrorRow]:
    """One row per config_type; empty when no frame has one."""
    names = sorted(set(predictions.config_type.tolist()))
    if names in ([], [""]):
        return []
    return [error_row(name or "(none)", predictions, predictions.config_type == name) for name in names]


def rows_by_element(predictions: Predictions) -> list[ErrorRow]:
    """Force errors per element; energies are not defined per element and stay NaN."""
    from ase.data import chemical_symbols

    rows = []
    nan = float("nan")
    errors = 1e3 * (predictions.forces_pred - predictions.forces_true)
    for z in np.unique(predictions.atomic_numbers):
        part = errors[predictions.atomic_numbers == z]
        rows.append(ErrorRow(chemical_symbols[int(z)], len(part), nan, nan, _rmse(part), _mae(part), _max(part), nan))
    return rows


def worst_frames(predictions: Predictions, count: int = 20) -> list[WorstFrame]:
    """The structures with the largest force RMSE, or with the largest energy error where forces are unknown."""
    energy = 1e3 * np.abs(predictions.energy_pred - predictions.energy_true) / predictions.num_atoms
    squares = ((predictions.forces_pred - predictions.forces_true) ** 2).sum(axis=1)
    sums = np.zeros(len(predictions))
    np.add.at(sums, predictions.frame_of_atom, squares)
    rmse = 1e3 * np.sqrt(sums / (3 * predictions.num_atoms))
    has_forces = bool(np.isfinite(rmse).any())
    score = np.nan_to_num(rmse if has_forces else energy, nan=-1.0)
    starts = np.cumsum(predictions.num_atoms) - predictions.num_atoms
    found = []
    for index in np.argsort(-score, kind="stable")[:count]:
        if score[index] < 0:
            break
        lengths = np.sqrt(squares[starts[index] : starts[index] + predictions.num_atoms[index]])
        known = bool(np.isfinite(lengths).all()) and lengths.size > 0
        found.append(
            WorstFrame(
                index=int(index),
                file=str(predictions.source[index]),
                frame=int(predictions.frame[index]),
                config_type=str(predictions.config_type[index]),
                num_atoms=int(predictions.num_atoms[index]),
                energy_error=float(energy[index]),
                forces_rmse=float(rmse[index]),
                forces_max=1e3 * float(lengths.max()) if known else float("nan"),
                worst_atom=int(lengths.argmax()) if known else -1,
            )
        )
    return found


def write_worst_frames(path: Path, sets: dict[str, Predictions], count: int = 20) -> Path:
    """The worst frames of every set as extxyz, with reference and predicted labels, for a structure viewer."""
    import io

    import ase.io
    from ase import Atoms

    from equijax.weights.atomic_file import write_atomically

    images = []
    for name, predictions in sets.items():
        starts = np.cumsum(predictions.num_atoms) - predictions.num_atoms
        for worst in worst_frames(predictions, count):
            atoms_of = slice(starts[worst.index], starts[worst.index] + worst.num_atoms)
            atoms = Atoms(
                numbers=predictions.atomic_numbers[atoms_of],
                positions=predictions.positions[atoms_of],
                cell=predictions.cell[worst.index],
                pbc=predictions.pbc[worst.index],
            )
            for kind, forces in (("reference", predictions.forces_true), ("predicted", predictions.forces_pred)):
                if np.isfinite(forces[atoms_of]).all():
                    atoms.arrays[f"forces_{kind}"] = forces[atoms_of]
            atoms.info |= {
                "set": name,
                "file": worst.file,
                "frame": worst.frame,
                "energy_reference": float(predictions.energy_true[worst.index]),
                "energy_predicted": float(predictions.energy_pred[worst.index]),
            }
            images.append(atoms)
    text = io.StringIO()
    ase.io.write(text, images, format="extxyz")
    return write_atomically(path, text.getvalue().encode())


def _finite(errors: np.ndarray) -> np.ndarray:
    return errors[np.isfinite(errors)]


def _rmse(errors: np.ndarray) -> float:
    finite = _finite(errors)
    return float(np.sqrt(np.mean(finite**2))) if finite.size else float("nan")


def _mae(errors: np.ndarray) -> float:
    finite = _finite(errors)
    return float(np.mean(np.abs(finite))) if finite.size else float("nan")


def _max(errors: np.ndarray) -> float:
    finite = _finite(errors)
    return float(np.max(np.abs(finite))) if finite.size else float("nan")
