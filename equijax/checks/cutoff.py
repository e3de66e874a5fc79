"""What happens when an atom crosses the cutoff: jumps of the energy, of the force and of its derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from equijax.checks.evaluation import Evaluate
from equijax.checks.rows import Row, Worst
from equijax.checks.structures import joined
from equijax.structure import Structure

STEP = 2e-4
"""Å; jumps are differences over this step and half of it, extrapolated to none."""
JUMPS = STEP * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
CURVE = np.linspace(-0.4, 0.3, 36)
"""Å beyond the cutoff, for the picture."""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """An atom that leaves a heap: `gap` Å beyond the cutoff of the heap's outermost atom, `energy` eV relative to the
    end, `force` eV/Å on the leaving atom along its way (`elements`: who leaves whom)."""

    gap: np.ndarray
    energy: np.ndarray
    force: np.ndarray
    elements: tuple[str, str]


def check_cutoff(
    evaluate: Evaluate, heap: Structure, pairs: Sequence[tuple[int, int]], cutoff: float
) -> tuple[list[Row], Crossing]:
    """Pairs of atoms at the cutoff, then an atom that leaves a heap, where others change with it."""
    from ase.data import chemical_symbols

    worst = {name: Worst() for name in ("energy", "force", "slope")}
    structures = [_pair(numbers, cutoff + gap) for numbers in pairs for gap in JUMPS]
    results = evaluate(structures)
    for row, numbers in enumerate(pairs):
        found = results[len(JUMPS) * row : len(JUMPS) * (row + 1)]
        energies = np.array([f.energy for f in found])
        forces = np.array([f.forces[1, 0] for f in found])
        where = f"a pair {'-'.join(chemical_symbols[z] for z in numbers)}"
        _add(worst, energies, forces, 1.0, where)
    anchor, direction = outermost(heap)
    symbols = tuple(chemical_symbols[heap.atomic_numbers[i]] for i in (_leaver(heap), anchor))
    gaps = np.concatenate([JUMPS, CURVE])
    found = evaluate([leaving(heap, anchor, direction, cutoff + gap) for gap in gaps])
    energies = np.array([f.energy for f in found])
    forces = np.array([f.forces[-1] @ direction for f in found])
    scale = max(1.0, float(max(np.abs(f.forces).max() for f in found)))
    _add(worst, energies[:5], forces[:5], scale, f"{symbols[0]} that leaves a heap at {symbols[1]}")
    curve = Crossing(CURVE, energies[5:] - energies[-1], forces[5:], (symbols[0], symbols[1]))
    return [
        worst["energy"].row("energy jumps at the cutoff", "eV"),
        worst["force"].row("force jumps at the cutoff", "eV/Å"),
        worst["slope"].row("derivative of the force jumps at the cutoff", "eV/Å²", severity="warn"),
    ], curve


def _add(worst: dict[str, Worst], energies: np.ndarray, forces: np.ndarray, scale: float, where: str) -> None:
    """Jumps of E, F and dF/dr at the middle of five points at -h, -h/2, 0, h/2, h.

    A smooth function differs by a + b h there, a jump by a in excess: 2 J(h/2) - J(h) is the jump, up to h².
    """
    inner, outer = STEP / 2, STEP
    energy = 2 * (energies[3] - energies[1]) - (energies[4] - energies[0])
    force = 2 * (forces[3] - forces[1]) - (forces[4] - forces[0])
    kinks = [(forces[4] - 2 * forces[2] + forces[0]) / outer, (forces[3] - 2 * forces[2] + forces[1]) / inner]
    worst["energy"].add(abs(float(energy)), 1e-6 * scale, where)
    worst["force"].add(abs(float(force)), 1e-5 * scale, where)
    worst["slope"].add(abs(float(2 * kinks[1] - kinks[0])), 1e-2 * scale, where)


def _pair(numbers: tuple[int, int], distance: float) -> Structure:
    return Structure(np.array(numbers), np.array([[0.0, 0, 0], [distance, 0, 0]]))


def outermost(heap: Structure) -> tuple[int, np.ndarray]:
    """The atom farthest from the centre and the direction from there to it."""
    arm = heap.positions - heap.positions.mean(axis=0)
    lengths = np.linalg.norm(arm, axis=1)
    atom = int(np.argmax(lengths))
    return atom, arm[atom] / lengths[atom]


def _leaver(heap: Structure) -> int:
    """An atom of the heap whose element leaves it; not the outermost one's where there is a choice."""
    anchor, _ = outermost(heap)
    others = np.flatnonzero(heap.atomic_numbers != heap.atomic_numbers[anchor])
    return int(others[0]) if len(others) else anchor


def leaving(heap: Structure, anchor: int, direction: np.ndarray, distance: float) -> Structure:
    """The heap and one atom more, `distance` outward from its outermost atom."""
    probe = heap.positions[anchor] + distance * direction
    return joined(heap, Structure(heap.atomic_numbers[[_leaver(heap)]], probe[None]))
