"""Reference and predicted labels of one test set, in a file that the report reads."""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import located
from equijax.models.target_labels import cartesian_value
from equijax.models.targets import TargetConfig
from equijax.structure import Structure
from equijax.weights.atomic_file import write_atomically


@dataclasses.dataclass(frozen=True)
class TargetValues:
    """Labels and predictions of a tensor target, the elements of all labelled structures in one row: `true`, `pred`;
    `unit` is text, perhaps empty."""

    true: np.ndarray
    pred: np.ndarray
    unit: str


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Labels and predictions of `S` structures with `N` atoms in all, eV and Å; NaN where there is no label.

    `energy_true`, `energy_pred` [S]; `forces_true`, `forces_pred` [N, 3]; `stress_true`, `stress_pred`
    [S, 3, 3] (ASE's sign); `num_atoms` [S]; `atomic_numbers` [N]; `frame_of_atom` [N], index into the
    structures; `positions` [N, 3]; `cell` [S, 3, 3]; `pbc` [S, 3]; `config_type`, `source` [S]
    text (file name), empty when unknown; `frame` [S], 0-based in it, -1 when unknown. `targets` by name.
    `energy_uncertainty`, `forces_uncertainty`, `stress_uncertainty` are shaped as the predictions, None where no
    structure has them.
    """

    energy_true: np.ndarray
    energy_pred: np.ndarray
    forces_true: np.ndarray
    forces_pred: np.ndarray
    stress_true: np.ndarray
    stress_pred: np.ndarray
    num_atoms: np.ndarray
    atomic_numbers: np.ndarray
    frame_of_atom: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    config_type: np.ndarray
    source: np.ndarray
    frame: np.ndarray
    targets: Mapping[str, TargetValues] = dataclasses.field(default_factory=dict)
    energy_uncertainty: np.ndarray | None = None
    forces_uncertainty: np.ndarray | None = None
    stress_uncertainty: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.num_atoms)


OPTIONAL = tuple(field.name for field in dataclasses.fields(Predictions) if field.name.endswith("_uncertainty"))
FIELDS = tuple(field.name for field in dataclasses.fields(Predictions) if field.name not in ("targets", *OPTIONAL))


def collect_predictions(
    structures: Sequence[Structure],
    results: Sequence[Mapping[str, np.ndarray]],
    targets: Mapping[str, TargetConfig] | None = None,
) -> Predictions:
    """Put labels and results (`energy`, `forces`, `stress` per structure, and `targets`) side by side."""
    if len(structures) != len(results):
        raise ValueError(f"{len(structures)} structures but {len(results)} results")
    missing = {"energy": np.full((), np.nan), "stress": np.full((3, 3), np.nan)}
    missing |= {f"{name}_uncertainty": value for name, value in missing.items()}

    def stack(name: str, sources: Sequence[Mapping[str, Any]]) -> np.ndarray:
        entries = [np.asarray(source.get(name, missing[name]), dtype=np.float64) for source in sources]
        return np.stack(entries) if entries else np.zeros((0, *missing[name].shape))

    def join(name: str, sources: Sequence[Mapping[str, Any]]) -> np.ndarray:
        blocks = [
            np.asarray(source[name], dtype=np.float64) if name in source else np.full((len(s), 3), np.nan)
            for s, source in zip(structures, sources, strict=True)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, 3))

    labels = [structure.labels for structure in structures]
    num_atoms = np.array([len(s) for s in structures], dtype=np.int64)
    return Predictions(
        energy_true=stack("energy", labels),
        energy_pred=stack("energy", results),
        forces_true=join("forces", labels),
        forces_pred=join("forces", results),
        stress_true=stack("stress", labels),
        stress_pred=stack("stress", results),
        num_atoms=num_atoms,
        atomic_numbers=np.concatenate([np.asarray(s.atomic_numbers) for s in structures] or [np.zeros(0, int)]),
        frame_of_atom=np.repeat(np.arange(len(structures)), num_atoms),
        positions=np.concatenate([np.asarray(s.positions) for s in structures] or [np.zeros((0, 3))]),
        cell=np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
        pbc=np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
        config_type=np.array([str(s.info.get("config_type", "")) for s in structures], dtype=np.str_),
        source=np.array([s.file or "" for s in structures], dtype=np.str_),
        frame=np.array([-1 if s.frame is None else s.frame for s in structures], dtype=np.int64),
        targets={
            name: _target_values(name, config, structures, results)
            for name, config in (targets or {}).items()
            if any(name in s.labels for s in structures)
        },
        **{
            name: join(name, results) if name == "forces_uncertainty" else stack(name, results)
            for name in OPTIONAL
            if any(name in result for result in results)
        },
    )


def _target_values(
    name: str, config: TargetConfig, structures: Sequence[Structure], results: Sequence[Mapping[str, np.ndarray]]
) -> TargetValues:
    pairs = [(s.labels[name], r[name]) for s, r in zip(structures, results, strict=True) if name in s.labels]
    true = np.concatenate([np.ravel(cartesian_value(config, np.asarray(label, np.float64))) for label, _ in pairs])
    return TargetValues(true, np.concatenate([np.ravel(value) for _, value in pairs]).astype(np.float64), config.unit)


def save_predictions(
    path: str | Path,
    structures: Sequence[Structure],
    results: Sequence[Mapping[str, np.ndarray]],
    targets: Mapping[str, TargetConfig] | None = None,
) -> Path:
    """Write `collect_predictions(structures, results, targets)` to a .npz; the file is complete or not there."""
    buffer = io.BytesIO()
    predictions = collect_predictions(structures, results, targets)
    arrays = {name: getattr(predictions, name) for name in FIELDS}
    arrays |= {name: getattr(predictions, name) for name in OPTIONAL if getattr(predictions, name) is not None}
    for name, values in predictions.targets.items():
        arrays |= {f"target/{name}/{part}": np.asarray(value) for part, value in vars(values).items()}
    np.savez_compressed(buffer, **arrays)
    return write_atomically(path, buffer.getvalue())


def load_predictions(path: str | Path) -> Predictions:
    """Read a file of `save_predictions`; EquijaxError when it is damaged or something else."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in FIELDS}
            optional = {name: archive[name] for name in OPTIONAL if name in archive.files}
            names = [key.split("/")[1] for key in archive.files if re.fullmatch(r"target/\w+/true", key)]
            targets = {
                name: TargetValues(
                    archive[f"target/{name}/true"], archive[f"target/{name}/pred"], str(archive[f"target/{name}/unit"])
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise located("is not a readable predictions file", file=path, expected="`equijax evaluate`'s") from error
    shapes = {name: arrays[name.replace("uncertainty", "pred")].shape for name in optional}
    if any(value.shape != shapes[name] for name, value in optional.items()):
        raise located("has uncertainties of other shapes than its predictions", file=path)
    lengths = {len(arrays[name]) for name in ("energy_true", "energy_pred", "num_atoms", "cell", "frame")}
    atoms = {len(arrays[name]) for name in ("forces_true", "forces_pred", "atomic_numbers", "frame_of_atom")}
    if len(lengths) != 1 or atoms != {int(arrays["num_atoms"].sum())}:
        raise located("has arrays of different lengths", file=path)
    return Predictions(**arrays, targets=targets, **optional)
