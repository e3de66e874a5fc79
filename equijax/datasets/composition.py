"""Sums over frames that go on growing: what E0s by least squares and normalisation need, without the frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from equijax.datasets.e0 import solve_composition

_ROWS = 4096  # frames per table of compositions: 119 columns in float64 are 1 kB per frame


def compositions(num_atoms: np.ndarray, atomic_numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(frames, how many atoms of every element they have, [frames, 119]) for a few thousand frames at a time."""
    ends = np.cumsum(num_atoms, dtype=np.int64)
    for first in range(0, len(num_atoms), _ROWS):
        rows = slice(first, min(first + _ROWS, len(num_atoms)))
        counts = num_atoms[rows].astype(np.int64)
        end = int(ends[rows.stop - 1])
        atoms = atomic_numbers[end - int(counts.sum()) : end]
        keys = np.repeat(np.arange(len(counts)), counts) * 119 + atoms
        yield rows, np.bincount(keys, minlength=119 * len(counts)).reshape(-1, 119)


@dataclasses.dataclass(frozen=True)
class LabelSums:
    """Sums over frames: atoms of every element {Z: n}, frames with every label, squares of force components in
    (eV/Å)², and the triangular factor R of the table [counts of elements, energy], which has the least-squares
    solution of the whole table in it."""

    atoms: dict[int, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    force_components: int = 0
    force_squares: float = 0.0
    elements: tuple[int, ...] = ()
    factor: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1)))

    def plus(self, arrays: Mapping[str, np.ndarray]) -> LabelSums:
        """These sums with the frames of a block of shards added."""
        counts = arrays["num_atoms"].astype(np.int64)
        by_element = np.bincount(arrays["atomic_numbers"], minlength=119)
        atoms = {z: self.atoms.get(z, 0) + int(by_element[z]) for z in range(119) if by_element[z] or z in self.atoms}
        labels = {
            name.removeprefix("has_"): self.labels.get(name.removeprefix("has_"), 0) + int(has.sum())
            for name, has in arrays.items()
            if name.startswith("has_")
        }
        # Forces that are not labels are zeros.
        forces = np.ravel(arrays["forces"])
        elements, factor = self.elements, self.factor
        for rows, table in compositions(arrays["num_atoms"], arrays["atomic_numbers"]):
            has = arrays["has_energy"][rows]
            elements, factor = _grown(elements, factor, table[has], arrays["energy"][rows][has])
        return LabelSums(
            atoms=atoms,
            labels=labels,
            force_components=self.force_components + 3 * int(counts[arrays["has_forces"]].sum()),
            force_squares=self.force_squares + float(np.vdot(forces, forces)),
            elements=elements,
            factor=factor,
        )

    def least_squares(self, which: str | None = "solution of smallest norm") -> dict[int, float]:
        """E0s {Z: eV} that minimise the sum of squares of E - ΣE0, as `e0.least_squares` of all frames.

        Warns when they are not determined, unless `which` is None.
        """
        frames = self.labels.get("energy", 0)
        return solve_composition(self.elements, self.factor[:, :-1], self.factor[:, -1], frames, which)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"factor": self.factor.tolist(), "elements": list(self.elements)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSums:
        elements = tuple(int(z) for z in data["elements"])
        return cls(
            atoms={int(z): int(n) for z, n in data["atoms"].items()},
            labels={str(name): int(n) for name, n in data["labels"].items()},
            force_components=int(data["force_components"]),
            force_squares=float(data["force_squares"]),
            elements=elements,
            factor=np.array(data["factor"], np.float64).reshape(-1, len(elements) + 1),
        )


def _grown(
    elements: tuple[int, ...], factor: np.ndarray, table: np.ndarray, energies: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """The factor of the earlier rows with those of `table` [frames, 119] and their energies added."""
    if not len(table):
        return elements, factor
    known = tuple(sorted({*elements, *np.flatnonzero(table.any(axis=0)).tolist()}))
    old = np.zeros((len(factor), len(known) + 1))
    old[:, [known.index(z) for z in elements]] = factor[:, :-1]
    old[:, -1] = factor[:, -1]
    new = np.concatenate([table[:, list(known)].astype(np.float64), energies[:, None]], axis=1)
    return known, np.asarray(np.linalg.qr(np.concatenate([old, new]), mode="r"))
