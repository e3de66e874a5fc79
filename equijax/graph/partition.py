"""One large structure as parts: the atoms that a part owns, and the halo of atoms that their energies depend on.

A model with H hops makes the energy of an atom from the atoms that can be reached along at most H edges. A part holds
those of all its own atoms and every edge among them, so that the energies of its own atoms, and the derivatives of
these by all its atoms, are those of the whole structure. Periodic images are edges with shifts, never copies of atoms:
a cell smaller than the receptive field gives parts that all hold every atom, once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph, batch, numbered
from equijax.graph.padding import Capacity
from equijax.precision import DType


@dataclasses.dataclass(frozen=True)
class Part:
    """`graph` of a part's own atoms, which come first, and its halo; `atoms` [n] and `edges` [e] are the places of both
    in the whole structure."""

    graph: StructureGraph
    atoms: np.ndarray
    edges: np.ndarray
    num_owned: int

    @property
    def owned(self) -> np.ndarray:
        """Places of the own atoms in the whole structure."""
        return self.atoms[: self.num_owned]

    def padded(self, capacity: Capacity, dtype: DType) -> AtomGraph:
        """The padded graph in which only own atoms count: `node_mask` is False for the halo as it is for ghosts."""
        whole = batch([self.graph], capacity, dtype)
        return dataclasses.replace(whole, node_mask=np.arange(capacity.nodes) < self.num_owned)


def owners(graph: StructureGraph, parts: int, reach: float) -> np.ndarray:
    """The part 0..parts-1 of every atom, [N]: bricks with equal numbers of atoms, cut along the cell's vectors.

    Of all ways to cut the structure `parts` = a x b x c times the one is taken whose bricks hold the least within
    `reach` (Å) of them. The number of atoms in a part differs by a few at most; with more parts than atoms some have
    none.
    """
    inverse = np.linalg.inv(graph.cell)
    fractional = graph.positions @ inverse
    periodic = np.array(graph.pbc)
    fractional[:, periodic] %= 1.0
    lengths = np.where(periodic, 1.0, np.ptp(fractional, axis=0)) / np.linalg.norm(inverse, axis=0)
    cuts = min(_grids(parts), key=lambda grid: _held(lengths, periodic, grid, reach))

    owner = np.zeros(len(fractional), dtype=np.int64)
    groups = [np.arange(len(fractional))]
    for axis, count in enumerate(cuts):
        ordered = (group[np.argsort(fractional[group, axis], kind="stable")] for group in groups)
        groups = [piece for group in ordered for piece in np.array_split(group, count)]
    for index, group in enumerate(groups):
        owner[group] = index
    return owner


def _grids(parts: int) -> Iterator[tuple[int, int, int]]:
    divisors = [n for n in range(1, parts + 1) if parts % n == 0]
    for a, b in itertools.product(divisors, divisors):
        if parts % (a * b) == 0:
            yield a, b, parts // (a * b)


def _held(
    lengths: np.ndarray, periodic: np.ndarray, grid: tuple[int, int, int], reach: float
) -> tuple[float, float, tuple[int, int, int]]:
    """What the largest brick of a grid and its halo hold, in cells: first with every halo full, and the surface."""
    counts = np.array(grid)
    size = lengths / counts
    sides = np.where(counts == 1, 0, np.where(periodic | (counts > 2), 2, 1))
    volume = np.prod(np.minimum(size + sides * reach, lengths) / np.maximum(lengths, 1e-9))
    surface = float(np.sum(sides / np.maximum(size, 1e-9)))
    return round(float(volume), 9), surface, grid


def part_of(graph: StructureGraph, owner: np.ndarray, index: int, hops: int) -> Part:
    """The part `index` of `owners`, with all atoms that are at most `hops` edges away from its own."""
    is_own = owner == index
    held = is_own.copy()
    for _ in range(hops):
        before = np.count_nonzero(held)
        held[graph.senders[held[graph.receivers]]] = True
        if np.count_nonzero(held) == before:
            break
    own = np.flatnonzero(is_own)
    atoms = np.concatenate([own, np.flatnonzero(held & ~is_own)])
    row = np.full(graph.num_nodes, -1, dtype=np.int64)
    row[atoms] = np.arange(len(atoms))

    edges = np.flatnonzero(held[graph.receivers] & held[graph.senders])
    edges = edges[np.argsort(row[graph.receivers[edges]], kind="stable")]
    place = np.full(graph.num_edges, -1, dtype=np.int64)
    place[edges] = np.arange(len(edges))
    receivers = row[graph.receivers[edges]]
    degree = np.bincount(receivers, minlength=len(atoms))
    held_graph = dataclasses.replace(
        graph,
        species=graph.species[atoms],
        positions=graph.positions[atoms],
        offset=graph.offset[atoms],
        receivers=receivers,
        senders=row[graph.senders[edges]],
        shifts=graph.shifts[edges],
        reverse=place[graph.reverse[edges]],
        slots=numbered(receivers, degree),
        degree=degree,
    )
    return Part(held_graph, atoms, edges, len(own))


def split(graph: StructureGraph, parts: int, hops: int) -> list[Part]:
    """A structure in `parts`, those without atoms left out."""
    owner = owners(graph, parts, hops * graph.cutoff)
    return [part_of(graph, owner, index, hops) for index in np.unique(owner).tolist()]
