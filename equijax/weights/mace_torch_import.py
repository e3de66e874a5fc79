"""`equijax convert mace-torch`: read, map, verify against torch, write. No verification, no file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.potential.potential import Potential
from equijax.weights.mace_torch_config import head_index
from equijax.weights.mace_torch_export import MaceTorchExport, ReferenceBatch, load_export
from equijax.weights.mace_torch_map import to_potential
from equijax.weights.mace_torch_state import ROUNDING
from equijax.weights.model_file import save_potential


@dataclasses.dataclass(frozen=True)
class Deviations:
    """Largest differences from torch over all reference structures, both sides in float64.

    `energy` relative; `forces`, `stress` and `node_features` relative to the largest reference value, or
    absolute when that is below one (eV/Å, eV/Å³, no unit).
    """

    energy: float
    forces: float
    stress: float
    node_features: float

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name):.1e}" for field in dataclasses.fields(self))


EXACT = Deviations(energy=1e-10, forces=1e-9, stress=1e-9, node_features=1e-9)
ROUNDED = Deviations(energy=1e-5, forces=1e-5, stress=1e-5, node_features=1e-5)
"""For models whose constants (Bessel frequencies, coupling tensors, radii) carry the rounding of float32."""


def import_mace_torch(export: MaceTorchExport, head: str | None = None) -> tuple[Potential, Deviations]:
    """The Potential of one head, checked against the references of the export.

    Raises EquijaxError for features that equijax's MACE does not have, for a state dict with anything missing
    or left over, and when energies, forces, stress or node features of a reference are not reproduced.
    """
    potential, constant_deviation = to_potential(export, head)
    deviations = compare(potential, export, head)
    allowed = EXACT if constant_deviation < ROUNDING else ROUNDED
    for field in dataclasses.fields(Deviations):
        found, limit = getattr(deviations, field.name), getattr(allowed, field.name)
        if not found <= limit:
            raise EquijaxError(
                f"the converted model does not reproduce torch: {field.name} deviates by {found:.1e}, "
                f"allowed is {limit:.0e} ({deviations}); nothing was written"
            )
    return potential, deviations


def compare(potential: Potential, export: MaceTorchExport, head: str | None = None) -> Deviations:
    """Evaluate every reference structure in float64 and compare with what torch computed."""
    name = export.config["heads"][head_index(export.config, head)]
    if not export.references:
        raise EquijaxError("the export holds no reference structures, so it cannot be verified")
    found = [_compare_batch(potential, batch, name) for batch in export.references.values()]
    return Deviations(*(float(np.max(column)) for column in zip(*found)))


def _compare_batch(potential: Potential, batch: ReferenceBatch, head: str) -> tuple[float, float, float, float]:
    torch = batch.outputs[head]
    energy, forces, stress, features = [], [], [0.0], []
    ends = np.cumsum(batch.num_atoms)
    for g, (structure, n, end) in enumerate(zip(batch.structures(), batch.num_atoms, ends)):
        periodic = all(structure.pbc)
        wanted = ("energy", "forces", "node_features", *(("stress",) if periodic else ()))
        ours = potential.predict(structure, wanted, dtype="float64")
        energy.append(abs(ours["energy"] - torch["energy"][g]) / max(abs(torch["energy"][g]), 1e-3))
        forces.append(_relative(ours["forces"], torch["forces"][end - n : end]))
        features.append(_relative(ours["node_features"], torch["node_feats"][end - n : end]))
        if periodic:
            stress.append(_relative(ours["stress"], torch["stress"][g]))
    # A NaN anywhere must not look like agreement.
    return tuple(float(np.max(values)) for values in (energy, forces, stress, features))  # type: ignore[return-value]


def _relative(ours: np.ndarray, torch: np.ndarray) -> float:
    if ours.shape != torch.shape:
        raise EquijaxError(f"torch computes an array of shape {torch.shape}, the converted model {ours.shape}")
    return float(np.abs(ours - torch).max() / max(1.0, np.abs(torch).max()))


def convert_mace_torch(source: str | Path, destination: str | Path, head: str | None = None) -> str:
    """Convert a mace-torch `.model` (needs torch) or an exported `.npz` to a `.safetensors` model file.

    Returns a report for the user. Reading a `.model` executes code in that file; a warning says so first.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".safetensors":
        raise located("is not a model file", file=destination, expected="a name that ends in .safetensors")
    if not source.is_file():
        raise located("there is no such file", file=source)
    if source.suffix == ".npz":
        export = load_export(source)
    else:
        from equijax.weights.mace_torch import export_mace_torch

        export = export_mace_torch(source)
    potential, deviations = import_mace_torch(export, head)
    save_potential(potential, destination)
    structures = sum(len(batch.num_atoms) for batch in export.references.values())
    return (
        f"{destination}: {potential!r}\n"
        f"verified on {structures} structures against torch, largest deviations: {deviations}"
    )
