"""One labelled frame in numpy: what every reader produces and every graph is built from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Structure:
    """Atoms, and the labels that were read for them, in eV and Å.

    `atomic_numbers` [N] int, `positions` [N, 3] Å, `cell` [3, 3] Å with rows a, b, c (zeros when absent),
    `pbc` three booleans. `labels` holds only labels that are present, under canonical names:
    `energy` () eV, `forces` [N, 3] eV/Å, `stress` [3, 3] eV/Å³ (ASE's sign: +dE/dε / V), and other targets by
    their config name. `info` keeps what else the frame said (`config_type`, ...). `file` and `frame` (0-based)
    say where it came from, for messages.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    pbc: tuple[bool, bool, bool] = (False, False, False)
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str | None = None
    frame: int | None = None

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def where(self) -> str:
        """`FILE frame N`, for messages."""
        place = self.file or "structure"
        return place if self.frame is None else f"{place} frame {self.frame}"

    @property
    def volume(self) -> float:
        """Å³; zero when the cell does not span three dimensions."""
        # Not the determinant: on some processors LAPACK divides by zero for a singular cell, and numpy warns.
        return float(abs(np.dot(self.cell[0], np.cross(self.cell[1], self.cell[2]))))

    @classmethod
    def from_ase(cls, atoms: Any) -> Structure:
        """The geometry of an ASE Atoms object; labels are the business of `equijax.datasets`."""
        return cls(
            atomic_numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.array(atoms.positions, dtype=np.float64),
            cell=np.array(atoms.cell.array, dtype=np.float64),
            pbc=tuple(bool(p) for p in atoms.pbc),  # type: ignore[arg-type]
        )

    def to_ase(self) -> Any:
        """An ASE Atoms object with the geometry only."""
        from ase import Atoms

        return Atoms(numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
