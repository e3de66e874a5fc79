"""Far fragments, crystals of two cells, single atoms, and how far the energy of an atom reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from equijax.checks.evaluation import Evaluate, Found
from equijax.checks.rows import Row, Worst
from equijax.checks.structures import joined, moved, name_of
from equijax.checks.symmetries import RELATIVE, relative
from equijax.potential.potential import Potential
from equijax.structure import Structure

MAX_DOUBLED = 64
"""Atoms; larger structures are not doubled, the heaps are in any case."""
SPACING = 0.55
"""Of the chain, in cutoffs: an atom sees its neighbours and not theirs."""


def doubled(structure: Structure, cutoff: float) -> Structure:
    """Two copies out of reach of each other, or two cells of a crystal."""
    if not any(structure.pbc):
        return joined(structure, moved(structure, structure.positions + np.array([10.0 * cutoff + 50.0, 0, 0])))
    axis = structure.pbc.index(True)
    cell = structure.cell.copy()
    cell[axis] *= 2
    second = moved(structure, structure.positions + structure.cell[axis])
    return dataclasses.replace(joined(structure, second), cell=cell)


def check_extensivity(
    evaluate: Evaluate, cases: Sequence[Structure], at_rest: Sequence[Found], cutoff: float
) -> list[Row]:
    """Twice the energy and the same forces, for two copies."""
    rows = []
    pairs = list(zip(cases, at_rest, strict=True))
    titles = ((False, "two distant copies: twice the energy"), (True, "a crystal of two cells: twice the energy"))
    for periodic, title in titles:
        worst = Worst()
        chosen = [(s, f) for s, f in pairs if any(s.pbc) == periodic and len(s) <= MAX_DOUBLED]
        results = evaluate([doubled(structure, cutoff) for structure, _ in chosen])
        for (structure, found), result in zip(chosen, results, strict=True):
            twice = np.concatenate([found.forces, found.forces])
            worst.add(relative(result.energy, 2 * found.energy), RELATIVE, f"energy of {name_of(structure)}")
            worst.add(relative(result.forces, twice), RELATIVE, f"forces of {name_of(structure)}")
        rows.append(worst.row(title, "relative"))
    return rows


def check_isolated_atoms(evaluate: Evaluate, potential: Potential) -> Row:
    """An atom alone has its reference energy exactly, and no force."""
    from ase.data import chemical_symbols

    atoms = [Structure(np.array([z]), np.zeros((1, 3))) for z in potential.elements]
    worst = Worst()
    for z, found in zip(potential.elements, evaluate(atoms), strict=True):
        worst.add(max(abs(found.energy), float(np.abs(found.forces).max())), 1e-300, chemical_symbols[z])
    # Models from mace-torch give an isolated atom whatever the network makes of the bare species.
    learned = getattr(potential.model_config, "isolated_atoms", "exact") == "learned"
    row = worst.row("an isolated atom has its reference energy", "eV", required=not learned)
    return row if learned else dataclasses.replace(row, limit=0.0)


def check_reach(evaluate: Evaluate, potential: Potential) -> list[Row]:
    """Influence on the first atom of a chain from the atoms beyond the reach of the model, which is one cutoff per
    layer and one for a layer that embeds the surroundings; and how many cutoffs it reaches."""
    layers = getattr(potential.model_config, "num_layers", None)
    allowed = None if layers is None else int(layers) + 1
    count = (allowed or 6) + 3
    numbers = np.array([potential.elements[i % len(potential.elements)] for i in range(count)])
    positions = np.zeros((count, 3))
    positions[:, 0] = SPACING * potential.cutoff * np.arange(count)
    # Off the line, or terms that vanish by symmetry would hide what is there.
    positions[:, 1] = 0.02 * potential.cutoff * np.sin(2.0 * np.arange(count))
    chain = Structure(numbers, positions)
    displaced = [chain]
    for k in range(1, count):
        shift = np.zeros((count, 3))
        shift[k] = 0.03 * potential.cutoff * np.array([0.5, 1.0, -0.7])
        displaced.append(moved(chain, positions + shift))
    first = np.array([found.atoms[0] for found in evaluate(displaced)])
    influence = np.abs(first[1:] - first[0])  # of atom 1, 2, ...
    floor = 1e-11 * max(1.0, abs(float(first[0])))
    felt = np.flatnonzero(~(influence <= floor))
    reach = int(felt[-1]) + 1 if len(felt) else 0
    rows = [Row("measured reach", float(reach), None, "cutoffs", note=f"of {potential.cutoff:g} Å")]
    if allowed is not None:
        beyond = float(influence[allowed:].max())
        note = f"more than {allowed} cutoffs away: num_layers and one for the embedding"
        rows.insert(0, Row("no influence from beyond the reach", beyond, floor, "eV", note=note))
    return rows
