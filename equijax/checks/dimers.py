"""Energy curves of all pairs of elements: repulsion at short distance, and no more than one well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from equijax.checks.evaluation import Evaluate
from equijax.checks.rows import Row
from equijax.structure import Structure

POINTS = 60
SHORTEST, WALL = 0.4, 0.65
"""Of the sum of the covalent radii: where curves begin, and below which every pair of atoms repels. The shortest bonds
of molecules (N2: 0.77) are longer."""
DEEP = 0.05
"""eV; shallower wells and barriers are not counted."""
MAX_PAIRS = 60


@dataclasses.dataclass(frozen=True)
class Dimer:
    """Two atoms at `distance` [P] Å: `energy` [P] eV relative to them apart, `force` [P] eV/Å, positive where they
    repel each other. `wall` Å: below it they must."""

    elements: tuple[str, str]
    distance: np.ndarray
    energy: np.ndarray
    force: np.ndarray
    wall: float

    @property
    def name(self) -> str:
        return "-".join(self.elements)

    @property
    def attraction(self) -> float:
        """The strongest attraction below the wall, eV/Å; not a number when the energy is not, anywhere."""
        if not np.isfinite(self.energy).all():
            return float("nan")
        return float(np.maximum(0.0, -self.force[self.distance <= self.wall]).max())

    @property
    def wells(self) -> list[int]:
        """Indices of the minima that are deeper than what surrounds them by more than DEEP.

        A fall towards the shortest distance is a well as well: the atoms would go there.
        """
        return wells(self.energy)

    @property
    def second_depth(self) -> float:
        """Depth of the second deepest well, eV; 0 with one well or none."""
        depths = sorted((depth(self.energy, i) for i in self.wells), reverse=True)
        return depths[1] if len(depths) > 1 else 0.0


def element_pairs(elements: Sequence[int], first: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """(pairs to check, how many there are): all, or the first MAX_PAIRS, those of the elements in `first` in front."""
    ordered = [*sorted(set(first)), *(z for z in elements if z not in set(first))]
    pairs = [(min(a, b), max(a, b)) for j, b in enumerate(ordered) for a in ordered[: j + 1]]
    return sorted(pairs[:MAX_PAIRS]), len(pairs)


def dimer_curves(evaluate: Evaluate, pairs: Sequence[tuple[int, int]], cutoff: float) -> list[Dimer]:
    """One curve per pair, from SHORTEST to a bit beyond the cutoff."""
    from ase.data import chemical_symbols, covalent_radii

    structures, grids, walls = [], [], []
    for a, b in pairs:
        bond = float(covalent_radii[a] + covalent_radii[b])
        grid = np.linspace(min(SHORTEST * bond, 0.5 * cutoff), 1.02 * cutoff, POINTS)
        grids.append(grid)
        walls.append(max(WALL * bond, float(grid[1])))
        structures += [Structure(np.array([a, b]), np.array([[0.0, 0, 0], [r, 0, 0]])) for r in grid]
    found = evaluate(structures)
    curves = []
    for row, (pair, grid, wall) in enumerate(zip(pairs, grids, walls, strict=True)):
        points = found[row * POINTS : (row + 1) * POINTS]
        energy = np.array([point.energy for point in points])
        force = np.array([point.forces[1, 0] for point in points])
        names = (chemical_symbols[pair[0]], chemical_symbols[pair[1]])
        curves.append(Dimer(names, grid, energy - energy[-1], force, wall))
    return curves


def check_dimers(curves: Sequence[Dimer], total: int) -> list[Row]:
    """Warnings, not failures: few training sets hold such pairs, and dynamics need not meet them."""
    left_out = "" if len(curves) == total else f"; {len(curves)} of {total} pairs were tried"
    deepest = max(curves, key=lambda curve: _sortable(curve.attraction))
    attracted = [curve.name for curve in curves if not curve.attraction <= 0]
    fix = f"attract: {_list(attracted)}; `zbl: true` in the model repels" if attracted else "all pairs repel"
    waviest = max(curves, key=lambda curve: _sortable(curve.second_depth))
    wavy = [curve.name for curve in curves if not curve.second_depth <= DEEP]
    waves = f"more wells than one: {_list(wavy)}" if wavy else "no pair has a second well"
    return [
        Row("attraction of two atoms at short distance", deepest.attraction, 0.0, "eV/Å", "warn", fix + left_out),
        Row("second well of two atoms, depth", waviest.second_depth, DEEP, "eV", "warn", waves + left_out),
    ]


def wells(energy: np.ndarray) -> list[int]:
    """Indices of minima whose depth exceeds DEEP; the first point counts when the curve falls towards it."""
    inner = [i for i in range(1, len(energy) - 1) if energy[i] < energy[i - 1] and energy[i] <= energy[i + 1]]
    first = [0] if energy[0] < energy[1] else []
    return [i for i in (*first, *inner) if depth(energy, i) > DEEP]


def depth(energy: np.ndarray, index: int) -> float:
    """How far one has to climb from a minimum to get to a lower point, or to the end of the curve at long distance."""
    barriers = [float(energy[index:].max())]
    lower = np.flatnonzero(energy < energy[index])
    for side in (lower[lower < index][-1:], lower[lower > index][:1]):
        if len(side):
            low, high = sorted((int(side[0]), index))
            barriers.append(float(energy[low : high + 1].max()))
    return min(barriers) - float(energy[index])


def _sortable(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _list(names: Sequence[str], count: int = 6) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
