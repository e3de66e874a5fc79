"""`equijax convert fairchem`: read, map with every key accounted for, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equijax.errors import located
from equijax.weights.fairchem_checkpoint import read_fairchem
from equijax.weights.fairchem_equiformer_v2 import to_potential
from equijax.weights.model_file import save_potential


def convert_fairchem(source: str | Path, destination: str | Path, elements: Sequence[int] | None = None) -> str:
    """Convert a checkpoint of fairchem, or an export of one, to a `.safetensors` model file; returns a report."""
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise located("is not a model file", file=destination, expected="a name that ends in .safetensors")
    export = read_fairchem(source)
    potential, unused = to_potential(export, elements)
    save_potential(potential, destination)
    lines = [f"{destination}: {potential!r}", "every entry of the state dict has its place"]
    lines += [f"left out, {reason}: {key}" for key, reason in unused.items()]
    lines += [f"limit: {sentence}" for sentence in potential.model_config.limits()]
    if export.element_energies is None:
        lines.append("no energies of elements in the checkpoint: energies are those of its targets, E0 = 0")
    return "\n".join(lines)
