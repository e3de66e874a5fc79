"""Parts of a structure: who owns what, which atoms the halo holds, and the tables of devices."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equijax.graph.batching import StructureGraph, structure_graph
from equijax.graph.padding import Capacity
from equijax.graph.partition import owners, part_of, split
from equijax.graph.shards import shard, shard_plan
from equijax.structure import Structure

CUTOFF = 4.0


def graph_of(atoms: Atoms, cutoff: float = CUTOFF) -> StructureGraph:
    return structure_graph(Structure.from_ase(atoms), cutoff, (6, 29))


def triclinic(repeat: tuple[int, int, int] = (3, 4, 5), seed: int = 0) -> Atoms:
    atoms = bulk("Cu") * repeat
    atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.0], [0.0, 1.1, 0.2], [0.05, 0.0, 0.95]], scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def cluster(count: int = 40, seed: int = 1) -> Atoms:
    rng = np.random.default_rng(seed)
    return Atoms("C" * count, positions=rng.uniform(0, 1, (count, 3)) * [5.0, 6.0, 30.0])


def hops_from(graph: StructureGraph, start: np.ndarray) -> np.ndarray:
    """Edges between each atom and the nearest of `start`, [N]; many where there is no way."""
    adjacent = np.zeros((graph.num_nodes,) * 2, bool)
    adjacent[graph.receivers, graph.senders] = True
    distance = np.full(graph.num_nodes, 999)
    distance[start] = 0
    for hop in range(1, graph.num_nodes):
        distance[adjacent[distance < hop].any(axis=0) & (distance == 999)] = hop
    return distance


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("atoms", [triclinic(), cluster()], ids=["crystal", "cluster"])
def test_parts_own_equal_numbers(atoms, parts):
    counts = np.bincount(owners(graph_of(atoms), parts, 8.0), minlength=parts)
    assert counts.max() - counts.min() <= 2


def test_more_parts_than_atoms():
    pieces = split(graph_of(cluster(3)), 8, 2)
    assert sorted(np.concatenate([piece.owned for piece in pieces]).tolist()) == [0, 1, 2]


def test_slabs_where_the_halo_is_wide():
    graph = graph_of(bulk("Cu", cubic=True) * (6, 6, 6))
    along = np.floor((graph.positions + 0.01) / 3.61)

    def directions(reach: float) -> int:
        owner = owners(graph, 8, reach)
        return sum(len({tuple(sorted(set(owner[along[:, axis] == x]))) for x in range(6)}) > 1 for axis in range(3))

    assert directions(8.0) == 1
    assert directions(1.0) == 2


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("atoms", [triclinic(), cluster(), bulk("Cu")], ids=["crystal", "cluster", "one atom"])
def test_halo_holds_exactly_the_atoms_within_the_hops(atoms, hops):
    graph = graph_of(atoms)
    owner = owners(graph, 4, hops * CUTOFF)
    for index in np.unique(owner):
        part = part_of(graph, owner, index, hops)
        assert part.owned.tolist() == np.flatnonzero(owner == index).tolist()
        assert sorted(part.atoms.tolist()) == np.flatnonzero(hops_from(graph, part.owned) <= hops).tolist()
        small = part.graph
        assert np.array_equal(part.atoms[small.receivers], graph.receivers[part.edges])
        assert np.array_equal(part.atoms[small.senders], graph.senders[part.edges])
        assert np.array_equal(small.reverse[small.reverse], np.arange(small.num_edges))
        assert np.array_equal(part.edges[small.reverse], graph.reverse[part.edges])
        np.testing.assert_array_equal(small.vectors(), graph.vectors()[part.edges])
        complete = hops_from(graph, part.owned)[part.atoms] < hops
        assert np.array_equal(small.degree[complete], graph.degree[part.atoms][complete])
        packed = part.padded(Capacity(small.num_nodes + 1, small.max_neighbors, 2), "float64")
        assert packed.node_mask.sum() == len(part.owned)


def test_a_cell_smaller_than_the_receptive_field_holds_every_atom_once():
    graph = graph_of(triclinic((1, 2, 2)))
    for part in split(graph, 2, 2):
        assert sorted(part.atoms.tolist()) == [0, 1, 2, 3]
        assert part.graph.num_edges == graph.num_edges


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("atoms", [triclinic(), cluster(), triclinic((1, 2, 2))], ids=["crystal", "cluster", "small"])
def test_tables_of_devices_bring_every_sender(atoms, devices):
    graph = graph_of(atoms)
    plan = shard_plan(graph, devices)
    capacity = Capacity(plan.atoms + 3, graph.max_neighbors + 2, 2)
    shards, vectors = shard(graph, plan, graph.vectors(), capacity, (plan.sent + 2, plan.received + 3), "float64")
    halo = shards.reverse
    number = np.full((devices, capacity.nodes), -1)
    number[plan.owner, plan.row] = np.arange(graph.num_nodes)
    assert np.array_equal(number >= 0, shards.node_mask)
    found = set()
    for d in range(devices):
        received = np.concatenate([number[source][halo.sends[source, d]] for source in range(devices)])
        senders = np.concatenate([number[d], received[halo.others[d]]])
        mask = shards.neighbor_mask[d]
        for n, k in np.argwhere(mask):
            receiver, sender = number[d, n], senders[shards.neighbors[d, n, k]]
            found.add((receiver, sender, *vectors[d, n, k].round(9)))
        assert shards.neighbors[d][~mask].tolist() == [capacity.nodes - 1] * int((~mask).sum())
        # What each sender sends: the slots that have it as neighbour, each once.
        listed = [(r, slot) for r, k in np.argwhere(halo.slot_mask[d]) for slot in [halo.slots[d, r, k]]]
        assert sorted(listed) == sorted((shards.neighbors[d].ravel()[s], s) for s in np.flatnonzero(mask.ravel()))
    expected = zip(graph.receivers, graph.senders, graph.vectors().round(9), strict=True)
    assert found == {(receiver, sender, *vector) for receiver, sender, vector in expected}
