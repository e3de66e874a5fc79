"""What crosses the border from mace-torch to equijax: plain arrays, a JSON config, and reference results.

One `.npz` file holds the state dict under `state/<key>`, the config as JSON text under `config`, and
under `reference/<name>/...` inputs with what torch computed for them, so that every import can be checked.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from equijax.structure import Structure
from equijax.weights.torch_state import read_export, state_of

FORMAT = "mace-torch export"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReferenceBatch:
    """G structures that torch evaluated in one batch, in float64.

    `numbers` [N], `positions` [N, 3] Å, `num_atoms` [G], `cell` [G, 3, 3] Å, `pbc` [G, 3]. `outputs` maps a
    head to `energy` [G] eV (with isolated-atom energies), `node_energy` [N] eV, `forces` [N, 3] eV/Å and
    `stress` [G, 3, 3] eV/Å³ (NaN without three periodic directions) and `node_feats` [N, F].
    """

    numbers: np.ndarray
    positions: np.ndarray
    num_atoms: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    outputs: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_structures(cls, structures: list[Structure]) -> ReferenceBatch:
        """The inputs of a reference, without outputs."""
        return cls(
            numbers=np.concatenate([s.atomic_numbers for s in structures]),
            positions=np.concatenate([s.positions for s in structures]),
            num_atoms=np.array([len(s) for s in structures]),
            cell=np.stack([s.cell for s in structures]),
            pbc=np.array([s.pbc for s in structures]),
        )

    def structures(self) -> list[Structure]:
        """The inputs, one Structure per graph."""
        ends = np.cumsum(self.num_atoms)
        return [
            Structure(
                atomic_numbers=self.numbers[end - n : end],
                positions=self.positions[end - n : end],
                cell=self.cell[g],
                pbc=tuple(bool(p) for p in self.pbc[g]),  # type: ignore[arg-type]
            )
            for g, (n, end) in enumerate(zip(self.num_atoms, ends))
        ]


@dataclasses.dataclass(frozen=True)
class MaceTorchExport:
    """`config`: what the module says, in JSON types; `state`: its state dict; named `references`."""

    config: dict[str, Any]
    state: dict[str, np.ndarray]
    references: dict[str, ReferenceBatch]

    def save(self, path: str | Path) -> None:
        """Write one compressed `.npz`."""
        arrays: dict[str, np.ndarray] = {"config": np.array(json.dumps(self.config, sort_keys=True))}
        arrays.update({f"state/{key}": value for key, value in self.state.items()})
        for name, reference in self.references.items():
            for field in ("numbers", "positions", "num_atoms", "cell", "pbc"):
                arrays[f"reference/{name}/{field}"] = getattr(reference, field)
            for head, outputs in reference.outputs.items():
                for quantity, value in outputs.items():
                    arrays[f"reference/{name}/outputs/{head}/{quantity}"] = value
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_export(path: str | Path) -> MaceTorchExport:
    """Read what `MaceTorchExport.save` wrote. Object arrays are refused, nothing in the file is executed."""
    config, arrays = read_export(path, "mace-torch", FORMAT, FORMAT_VERSION)
    return MaceTorchExport(config, state_of(arrays), _references(arrays))


def _references(arrays: dict[str, np.ndarray]) -> dict[str, ReferenceBatch]:
    inputs: dict[str, dict[str, np.ndarray]] = {}
    outputs: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, value in arrays.items():
        match key.split("/"):
            case ["reference", name, "outputs", head, quantity]:
                outputs.setdefault(name, {}).setdefault(head, {})[quantity] = value
            case ["reference", name, field]:
                inputs.setdefault(name, {})[field] = value
    return {name: ReferenceBatch(**fields, outputs=outputs.get(name, {})) for name, fields in inputs.items()}
