"""`equijax convert fairchem`: read, map with every key accounted for, write."""

from __future__ import annotations

from pathlib import Path

from equijax.errors import located
from equijax.weights import fairchem_equiformer_v2, fairchem_escn
from equijax.weights.fairchem_checkpoint import backbone_name, read_fairchem
from equijax.weights.model_file import save_potential
from equijax.weights.torch_state import elements_by_symbol

READERS = {
    **dict.fromkeys(fairchem_equiformer_v2.BACKBONES, fairchem_equiformer_v2.to_potential),
    **dict.fromkeys(fairchem_escn.BACKBONES, fairchem_escn.to_potential),
}
"""What makes a potential of a checkpoint, by the name under which fairchem registers its model."""


def convert_fairchem(source: str | Path, destination: str | Path, elements: str | None = None) -> str:
    """Convert a checkpoint of fairchem, or an export of one, to a `.safetensors` model file; returns a report.

    `elements`: symbols to keep, with commas between them. The weights are not evaluated against fairchem.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise located("is not a model file", file=destination, expected="a name that ends in .safetensors")
    export = read_fairchem(source)
    name = backbone_name(export.model)
    if name not in READERS:
        raise located(f"holds the model {name}", file=source, expected=f"one of {', '.join(READERS)}")
    potential, unused = READERS[name](export, None if elements is None else elements_by_symbol(elements))
    save_potential(potential, destination)
    lines = [f"{destination}: {potential!r}", "every entry of the state dict has its place; fairchem was not run"]
    lines += [f"left out, {reason}: {key}" for key, reason in unused.items()]
    lines += [f"limit: {sentence}" for sentence in potential.model_config.limits()]
    if export.element_energies is None:
        lines.append("no energies of elements in the checkpoint: energies are those of its targets, E0 = 0")
    return "\n".join(lines)
