"""Blocks of Hamiltonians as labels: frames on the host, and padded batches of them with their pairs of atoms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph, batch, structure_graph
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.pair_list import PairList, pair_capacity, pair_list
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals, occupied_orbitals
from equijax.orbitals.blocks import pack
from equijax.orbitals.layout import OrbitalLayout
from equijax.precision import DType
from equijax.structure import Structure

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReferenceOrbitals:
    """Orbitals of the reference, for the loss of wavefunctions: coefficients [N, S, M] in the slots of every atom, and
    per graph their number [G] and that of the occupied ones [G]; zero for padding."""

    coefficients: Array
    count: Array
    occupied: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HamiltonianBatch:
    """A padded graph, its pairs of atoms, and the blocks of dH = H - H0 in Hartree, [N, S, S] and [P, S, S].

    `slots` [N, S] says which orbitals of the padded block an atom has; it is False for padding.
    """

    graph: AtomGraph
    pairs: PairList
    atom_blocks: Array
    pair_blocks: Array
    slots: Array
    orbitals: ReferenceOrbitals | None


@dataclasses.dataclass(frozen=True)
class HamiltonianFrame:
    """A molecule with its blocks in float64. `labels` are those of `HamiltonianObjective`: the blocks of atoms and of
    pairs, and the coefficients [n, S, nao] of the reference's orbitals with the number of occupied ones."""

    graph: StructureGraph
    structure: Structure
    slots: np.ndarray
    labels: dict[str, tuple[Any, ...]]

    @property
    def num_atoms(self) -> int:
        return self.graph.num_nodes


def hamiltonian_frame(
    structure: Structure, cutoff: float, elements: Sequence[int], layout: OrbitalLayout, with_orbitals: bool
) -> HamiltonianFrame:
    """The graph and blocks of a structure with the labels `hamiltonian`, `initial_hamiltonian` and, for the orbitals,
    `overlap`."""
    labels = structure.labels
    numbers = structure.atomic_numbers
    blocks = pack(np.asarray(labels["hamiltonian"]) - labels["initial_hamiltonian"], numbers, layout)
    slots = np.stack([layout.mask(int(z)) for z in numbers])
    known: dict[str, tuple[Any, ...]] = {"hamiltonian": (blocks.atoms, blocks.pairs)}
    if with_orbitals:
        occupied = occupied_orbitals(structure)
        orbitals = molecular_orbitals(labels["hamiltonian"], labels["overlap"], occupied)
        coefficients = np.zeros((*slots.shape, len(orbitals.energies)))
        coefficients[slots] = orbitals.coefficients
        known["wavefunction"] = (coefficients, occupied)
    return HamiltonianFrame(structure_graph(structure, cutoff, elements), structure, slots, known)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of batches depend on beside their capacity: slots of a block, the most atoms of a molecule, and
    its most orbitals, None where no loss needs them."""

    slots: int
    atoms: int
    orbitals: int | None

    @classmethod
    def of(cls, frames: Sequence[HamiltonianFrame]) -> Sizes:
        coefficients = [frame.labels["wavefunction"][0].shape[-1] for frame in frames if "wavefunction" in frame.labels]
        most = max(frame.num_atoms for frame in frames)
        return cls(frames[0].slots.shape[-1], most, max(coefficients, default=None))

    def pairs(self, capacity: Capacity) -> int:
        """Rows of the list of pairs: molecules of at most `atoms` atoms have no more pairs than this."""
        return pair_capacity((capacity.nodes - 1) * (self.atoms - 1) // 2, PaddingPolicy())


def hamiltonian_batch(
    frames: Sequence[HamiltonianFrame], capacity: Capacity, dtype: DType, sizes: Sizes
) -> HamiltonianBatch:
    """Pad graphs, pairs and blocks."""
    graphs = [frame.graph for frame in frames]
    pairs = pair_list(graphs, capacity, sizes.pairs(capacity))
    atom_blocks = np.zeros((capacity.nodes, sizes.slots, sizes.slots), dtype)
    pair_blocks = np.zeros((pairs.num_pairs, sizes.slots, sizes.slots), dtype)
    slots = np.zeros((capacity.nodes, sizes.slots), bool)
    orbitals = None
    if sizes.orbitals is not None:
        orbitals = ReferenceOrbitals(
            coefficients=np.zeros((capacity.nodes, sizes.slots, sizes.orbitals), dtype),
            count=np.zeros(capacity.graphs, np.int32),
            occupied=np.zeros(capacity.graphs, np.int32),
        )
    row = pair = 0
    for index, frame in enumerate(frames):
        of_atoms, of_pairs = frame.labels["hamiltonian"]
        rows = slice(row, row + len(of_atoms))
        atom_blocks[rows] = of_atoms
        pair_blocks[pair : pair + len(of_pairs)] = of_pairs
        slots[rows] = frame.slots
        if orbitals is not None:
            coefficients, occupied = frame.labels["wavefunction"]
            count = coefficients.shape[-1]
            orbitals.coefficients[rows, :, :count] = coefficients
            orbitals.count[index], orbitals.occupied[index] = count, occupied
        row, pair = rows.stop, pair + len(of_pairs)
    return HamiltonianBatch(batch(graphs, capacity, dtype), pairs, atom_blocks, pair_blocks, slots, orbitals)
