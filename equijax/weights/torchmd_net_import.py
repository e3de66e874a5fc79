"""`equijax convert torchmd-net`: read, map, compare with torch where it can be, write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.potential.potential import Potential
from equijax.structure import Structure
from equijax.units import energy_unit
from equijax.weights.model_file import save_potential
from equijax.weights.torch_state import elements_by_symbol
from equijax.weights.torchmd_net_checkpoint import Reference, read_torchmd_net
from equijax.weights.torchmd_net_map import to_potential

TOLERANCE = 1e-9
"""Energies relative to max(1, |E|), forces relative to max(1, largest), both in float64."""


def convert_torchmd_net(
    source: str | Path,
    destination: str | Path,
    unit: str,
    elements: str | None = None,
    num_atoms: int | None = None,
    total_charge: float = 0.0,
) -> str:
    """Convert a checkpoint of torchmd-net, or an export of one, to a `.safetensors` model file; returns a report.

    `unit` is that of its energies, which the checkpoint does not say. It is verified against the references of the
    export, or against torchmd-net where that is installed; a deviation writes nothing.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise located("is not a model file", file=destination, expected="a name that ends in .safetensors")
    export, factor = read_torchmd_net(source), energy_unit(unit)
    kept = None if elements is None else elements_by_symbol(elements)
    potential = to_potential(export, factor, kept, num_atoms, total_charge)
    references = {name: r for name, r in export.references.items() if r.charge == total_charge}
    if not references:
        from equijax.weights import torchmd_net

        if torchmd_net.is_installed():
            references = torchmd_net.default_references(
                export.hyper_parameters, export.state, potential.elements, total_charge
            )
    lines = [f"{destination}: {potential!r}"]
    if references:
        mean = float(export.state["mean"])
        deviation = largest_deviation(potential, references, factor, mean / num_atoms if num_atoms else 0.0, mean)
        if not deviation <= TOLERANCE:
            raise EquijaxError(
                f"the converted model does not reproduce torch: energies or forces deviate by {deviation:.1e}, "
                f"allowed is {TOLERANCE:.0e}; nothing was written"
            )
        lines.append(f"verified on {len(references)} structures against torch, largest deviation: {deviation:.1e}")
    else:
        lines.append("every entry of the state dict has its place; torchmd-net is not installed, so it was not run")
    save_potential(potential, destination)
    return "\n".join([*lines, *(f"limit: {sentence}" for sentence in potential.model_config.limits())])


def largest_deviation(
    potential: Potential, references: Mapping[str, Reference], factor: float = 1.0, shift_per_atom: float = 0.0,
    mean: float = 0.0,
) -> float:  # fmt: skip
    """Of energies and forces from torch's, see `TOLERANCE`. `factor`: torch's unit of energy in eV.

    torch's energies hold `mean` once per molecule, where the potential has `shift_per_atom`.
    """
    found = []
    for reference in references.values():
        structure = Structure(reference.numbers, reference.positions)
        ours = potential.predict(structure, ("energy", "forces"), dtype="float64")
        expected = reference.energy - mean + shift_per_atom * len(structure)
        found.append(abs(ours["energy"] / factor - expected) / max(1.0, abs(expected)))
        difference = np.abs(ours["forces"] / factor - reference.forces).max()
        found.append(difference / max(1.0, np.abs(reference.forces).max()))
    # A NaN anywhere must not look like agreement.
    return float(np.max(found))
