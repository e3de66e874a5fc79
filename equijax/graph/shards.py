"""One structure on several devices: the graph of every device, with the tables by which they exchange rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph
from equijax.graph.halo import Halo
from equijax.graph.padding import PaddingPolicy, rung
from equijax.graph.partition import owners
from equijax.precision import DType


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Who owns what, for a structure of A atoms and E edges on D devices.

    `owner` [A] device and `row` [A] of every atom there; `sender_row` [E] and `slot` [E]: place of the sender of every
    edge among the rows of senders of the device of its receiver, and its column there. Sizes are padded: N `rows` of
    atoms with a ghost, K `neighbors`, S `sent` atoms from one device to another; as in `Halo`.
    """

    owner: np.ndarray
    row: np.ndarray
    sender_row: np.ndarray
    slot: np.ndarray
    sends: np.ndarray
    rows: int
    neighbors: int

    @property
    def devices(self) -> int:
        return self.sends.shape[0]

    @property
    def sent(self) -> int:
        """S, what one device sends to another at most."""
        return self.sends.shape[2]


def shard_plan(graph: StructureGraph, devices: int, policy: PaddingPolicy) -> ShardPlan:
    """Parts of equal numbers of atoms in which the fewest neighbours are on other devices."""
    owner = owners(graph, devices, graph.cutoff)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=devices)
    row = np.empty(graph.num_nodes, np.int64)
    row[order] = np.arange(graph.num_nodes) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = rung(int(counts.max()) + 1, policy.ratio, policy.node_multiple)
    neighbors = rung(max(graph.max_neighbors, 1), policy.ratio, policy.neighbor_multiple)

    source, target = owner[graph.senders], owner[graph.receivers]
    crossing = np.flatnonzero(source != target)
    # Every atom once for each device that needs it, sorted by that device, by the one that has it, and by atom.
    keys = (target[crossing] * devices + source[crossing]) * graph.num_nodes + graph.senders[crossing]
    needed, place = np.unique(keys, return_inverse=True)
    pair, atom = needed // graph.num_nodes, needed % graph.num_nodes
    pair_counts = np.bincount(pair, minlength=devices * devices)
    index = np.arange(len(needed)) - (np.cumsum(pair_counts) - pair_counts)[pair]
    sent = rung(max(int(pair_counts.max(initial=0)), 1), policy.ratio, policy.node_multiple)
    sends = np.zeros((devices, devices, sent), np.int32)  # by sender, receiver
    sends[pair % devices, pair // devices, index] = row[atom]
    sender_row = row[graph.senders]
    sender_row[crossing] = rows + source[crossing] * sent + index[place]
    return ShardPlan(owner, row, sender_row, graph.slots, sends, rows, neighbors)


def shard(graph: StructureGraph, plan: ShardPlan, dtype: DType) -> AtomGraph:
    """The graphs of all devices, every array with an axis of D in front."""
    devices, n, k = plan.devices, plan.rows, plan.neighbors
    at = (plan.owner, plan.row)
    place = plan.owner[graph.receivers], plan.row[graph.receivers], plan.slot

    def filled(shape: tuple[int, ...], value: Any, kind: Any, where: tuple[np.ndarray, ...], what: Any) -> np.ndarray:
        array = np.full((devices, *shape), value, kind)
        array[where] = what
        return array

    node_mask = filled((n,), False, bool, at, True)
    cell = np.stack([graph.cell, np.eye(3)]).astype(dtype)
    slots, slot_mask = _sent_slots(graph, plan)
    return AtomGraph(
        positions=filled((n, 3), 0, dtype, at, graph.positions),
        species=filled((n,), 0, np.int32, at, graph.species),
        node_graph=np.where(node_mask, 0, 1).astype(np.int32),
        node_mask=node_mask,
        neighbors=filled((n, k), n - 1, np.int32, place, plan.sender_row),
        neighbor_mask=filled((n, k), False, bool, place, True),
        shifts=filled((n, k, 3), 0, dtype, place, graph.shifts),
        reverse=Halo(plan.sends, slots, slot_mask),
        cell=np.repeat(cell[None], devices, axis=0),
        graph_mask=np.repeat(np.array([[True, False]]), devices, axis=0),
    )


def shard_vectors(graph: StructureGraph, plan: ShardPlan, vectors: np.ndarray, dtype: DType) -> np.ndarray:
    """Vectors [E, 3] of the edges at their slots, [D, N, K, 3]; padded slots as in `pad_vectors`."""
    padded = np.full((plan.devices, plan.rows, plan.neighbors, 3), 3.0**-0.5, dtype)
    padded[plan.owner[graph.receivers], plan.row[graph.receivers], plan.slot] = vectors
    return padded


def _sent_slots(graph: StructureGraph, plan: ShardPlan) -> tuple[np.ndarray, np.ndarray]:
    """`slots` and `slot_mask` of every device, [D, R, K]."""
    senders = plan.rows + plan.devices * plan.sent
    flat = plan.row[graph.receivers] * plan.neighbors + plan.slot
    sender = plan.owner[graph.receivers] * senders + plan.sender_row
    order = np.argsort(sender, kind="stable")
    counts = np.bincount(sender, minlength=plan.devices * senders)
    column = np.arange(len(order)) - (np.cumsum(counts) - counts)[sender[order]]
    slots = np.zeros((plan.devices * senders, plan.neighbors), np.int32)
    mask = np.zeros(slots.shape, bool)
    slots[sender[order], column] = flat[order]
    mask[sender[order], column] = True
    shape = (plan.devices, senders, plan.neighbors)
    return slots.reshape(shape), mask.reshape(shape)
