"""A neighbour list that survives small moves: searched with a skin, filtered to the cutoff at every step."""

from __future__ import annotations

import dataclasses

import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import StructureGraph, species_index
from equijax.graph.neighbors import CLOSEST, NeighborList, completed_cell, neighbor_list
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Edges within cutoff + skin of a reference structure, in an order that depends on the edges alone.

    `cell` is the completed cell of the reference. Sums over neighbours run in the order of the edges, so the
    canonical order (receiver, sender, shift) makes every later result independent of when the list was made.
    """

    structure: Structure
    cell: np.ndarray
    species: np.ndarray
    receivers: np.ndarray
    senders: np.ndarray
    shifts: np.ndarray
    reverse: np.ndarray


class SkinList:
    """Edges within `cutoff` (Å) of a moving structure, exact at every call.

    The candidates are searched again when they could miss an edge: when the elements, the number of atoms or
    the periodicity change, or when atoms have moved too far. "Too far" follows from the strain F that takes
    the reference cell to the present one (rows: r' = r F) and from the largest displacement u beyond that
    strain: an edge shorter than the cutoff now was shorter than (cutoff + 2 u) / σ_min(F) in the reference,
    which has to stay within cutoff + skin. For a fixed cell this is the usual u <= skin / 2. Atoms that other
    code wraps into the cell show up as large displacements. `rebuilds` counts the searches.
    """

    def __init__(self, cutoff: float, skin: float, elements: tuple[int, ...]) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise EquijaxError(f"skin is {skin}; expected a length in Å, zero or more")
        self.cutoff = cutoff
        self.skin = skin
        self.elements = elements
        self.rebuilds = 0
        self._candidates: Candidates | None = None

    def edges(self, structure: Structure) -> tuple[StructureGraph, np.ndarray]:
        """The graph with every edge shorter than the cutoff, and the edge vectors [E, 3] in Å, float64."""
        if self._candidates is None or not self._is_valid(self._candidates, structure):
            self._candidates = self._search(structure)
            self.rebuilds += 1
        return self._within_cutoff(self._candidates, structure)

    def _is_valid(self, reference: Candidates, structure: Structure) -> bool:
        old = reference.structure
        if old.pbc != structure.pbc or not np.array_equal(old.atomic_numbers, structure.atomic_numbers):
            return False
        displacements = structure.positions - old.positions
        shrink = 1.0
        if any(structure.pbc) and not np.array_equal(old.cell, structure.cell):
            strain = np.linalg.inv(reference.cell) @ completed_cell(structure)
            displacements = structure.positions - old.positions @ strain
            shrink = float(np.linalg.svd(strain, compute_uv=False)[-1])
        # Only differences matter: a translation of everything leaves the list as it is.
        with np.errstate(invalid="ignore", over="ignore"):
            displacements = displacements - displacements.mean(axis=0)
            farthest = float(np.sqrt(np.max(np.sum(displacements**2, axis=1))))
        # Comparisons with NaN are false: positions that are not finite lead to a search, which names the atom.
        return self.cutoff + 2 * farthest <= (self.cutoff + self.skin) * shrink * (1 - 1e-9)

    def _search(self, structure: Structure) -> Candidates:
        species = species_index(structure, self.elements)
        edges = neighbor_list(structure, self.cutoff + self.skin)
        order = canonical_order(edges)
        rank = np.empty(len(edges), dtype=np.int64)
        rank[order] = np.arange(len(edges))
        return Candidates(
            structure=structure,
            cell=completed_cell(structure),
            species=species,
            receivers=edges.receivers[order],
            senders=edges.senders[order],
            shifts=edges.shifts[order].astype(np.float64),
            reverse=rank[edges.reverse[order]],
        )

    def _within_cutoff(self, candidates: Candidates, structure: Structure) -> tuple[StructureGraph, np.ndarray]:
        receivers, senders, shifts = candidates.receivers, candidates.senders, candidates.shifts
        cell = completed_cell(structure)
        vectors = structure.positions.take(receivers, axis=0) - structure.positions.take(senders, axis=0)
        if any(structure.pbc):
            vectors -= shifts @ cell
        squared = np.einsum("ex,ex->e", vectors, vectors)
        kept = squared < self.cutoff**2
        kept &= kept.take(candidates.reverse)  # rounding may differ between an edge and its opposite
        self._check_closest(squared, candidates, structure)
        index = np.flatnonzero(kept)
        renumbered = np.cumsum(kept) - 1
        receivers = receivers.take(index)
        degree = np.bincount(receivers, minlength=len(structure))
        starts = np.cumsum(degree) - degree
        graph = StructureGraph(
            species=candidates.species,
            positions=structure.positions,
            offset=np.zeros_like(structure.positions),
            cell=structure.cell if structure.volume > 1e-9 else cell,
            pbc=structure.pbc,
            receivers=receivers,
            senders=senders.take(index),
            shifts=shifts.take(index, axis=0),
            reverse=renumbered.take(candidates.reverse.take(index)),
            slots=np.arange(len(index)) - starts.take(receivers),
            degree=degree,
            cutoff=self.cutoff,
            where=structure.where,
        )
        return graph, vectors.take(index, axis=0)

    def _check_closest(self, squared: np.ndarray, candidates: Candidates, structure: Structure) -> None:
        if len(squared) and squared.min() < CLOSEST**2:
            edge = int(np.argmin(squared))
            pair = sorted((int(candidates.receivers[edge]), int(candidates.senders[edge])))
            raise EquijaxError(f"{structure.where}: atoms {pair[0]} and {pair[1]} are at the same place")


def canonical_order(edges: NeighborList) -> np.ndarray:
    """Permutation that sorts edges by receiver, sender and shift, [E]."""
    if len(edges) == 0:
        return np.empty(0, dtype=np.int64)
    low = edges.shifts.min(axis=0).astype(np.int64)
    extent = edges.shifts.max(axis=0).astype(np.int64) - low + 1
    atoms = int(edges.receivers.max()) + 1
    if float(atoms) ** 2 * float(np.prod(extent.astype(float))) < 2**62:
        key = edges.receivers * atoms + edges.senders
        for axis in range(3):
            key = key * extent[axis] + (edges.shifts[:, axis] - low[axis])
        return np.argsort(key, kind="stable")
    return np.lexsort((*edges.shifts.T[::-1], edges.senders, edges.receivers))
