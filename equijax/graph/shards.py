"""One structure on several devices: the graph of every device, with the tables by which they exchange rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph, numbered
from equijax.graph.halo import Halo
from equijax.graph.padding import Capacity
from equijax.graph.partition import owners
from equijax.precision import DType


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Who owns what, for a structure of A atoms and E edges on D devices.

    `owner` [A] device and `row` [A] of every atom there; `crosses` [E] True for edges whose sender is on another device
    than their receiver; `place` [E] the row of the sender on its device, or, where the edge crosses, its number among
    the other devices' atoms that the receiver's device gets. `sends` [D, D, S], by sender and receiver, are rows of the
    atoms that are sent, and `others` [D, H, 2] the sender and the place in its message of all that each device gets;
    the rest of both is zero.
    """

    owner: np.ndarray
    row: np.ndarray
    crosses: np.ndarray
    place: np.ndarray
    sends: np.ndarray
    others: np.ndarray

    @property
    def devices(self) -> int:
        return self.sends.shape[0]

    @property
    def sent(self) -> int:
        """S, what one device sends to another at most."""
        return self.sends.shape[2]

    @property
    def received(self) -> int:
        """H, what one device gets from all others at most."""
        return self.others.shape[1]

    @property
    def atoms(self) -> int:
        """Atoms of one device at most."""
        return int(np.bincount(self.owner).max())


def shard_plan(graph: StructureGraph, devices: int) -> ShardPlan:
    """Parts of equal numbers of atoms, with few neighbours on other devices."""
    owner = owners(graph, devices, graph.cutoff)
    counts = np.bincount(owner, minlength=devices)
    order = np.argsort(owner, kind="stable")
    row = np.empty(graph.num_nodes, np.int64)
    row[order] = numbered(owner[order], counts)

    source, target = owner[graph.senders], owner[graph.receivers]
    crosses = source != target
    edges = np.flatnonzero(crosses)
    # Every atom once for each device that needs it, ordered by receiver, sender and atom.
    keys = (target[edges] * devices + source[edges]) * graph.num_nodes + graph.senders[edges]
    needed, which = np.unique(keys, return_inverse=True)
    pair, atom = np.divmod(needed, graph.num_nodes)
    receiver, sender = np.divmod(pair, devices)
    in_message, in_list = numbered(pair, np.bincount(pair)), numbered(receiver, np.bincount(receiver))
    sends = np.zeros((devices, devices, in_message.max(initial=0) + 1), np.int32)
    sends[sender, receiver, in_message] = row[atom]
    others = np.zeros((devices, in_list.max(initial=0) + 1, 2), np.int32)
    others[receiver, in_list] = np.stack([sender, in_message], axis=1)
    place = row[graph.senders]
    place[edges] = in_list[which]
    return ShardPlan(owner, row, crosses, place, sends, others)


def shard(
    graph: StructureGraph,
    plan: ShardPlan,
    vectors: np.ndarray,
    capacity: Capacity,
    room: tuple[int, int],
    dtype: DType,
) -> tuple[AtomGraph, np.ndarray]:
    """The graphs of all devices and the vectors at their slots, every array with an axis of D in front.

    `vectors` [E, 3] belong to the edges of `graph`; `capacity` is that of one device, and `room` what S and H are
    padded to.
    """
    devices, n, k = plan.devices, capacity.nodes, capacity.neighbors
    sent, received = room
    target = plan.owner[graph.receivers]
    senders = np.where(plan.crosses, n + plan.place, plan.place)
    atoms = (plan.owner, plan.row)
    edges = (target, plan.row[graph.receivers], graph.slots)

    def filled(shape: tuple[int, ...], value: Any, kind: Any, where: tuple[np.ndarray, ...], what: Any) -> np.ndarray:
        array = np.full((devices, *shape), value, kind)
        array[where] = what
        return array

    node_mask = filled((n,), False, bool, atoms, True)
    flat = edges[1] * k + graph.slots
    slots, slot_mask = _sent_slots(target * (n + received) + senders, flat, devices * (n + received), k)
    halo = Halo(
        sends=np.pad(plan.sends, ((0, 0), (0, 0), (0, sent - plan.sent))),
        others=np.pad(plan.others[..., 0] * sent + plan.others[..., 1], ((0, 0), (0, received - plan.received))),
        slots=slots.reshape(devices, -1, k),
        slot_mask=slot_mask.reshape(devices, -1, k),
    )
    graphs = AtomGraph(
        positions=filled((n, 3), 0, dtype, atoms, graph.positions),
        species=filled((n,), 0, np.int32, atoms, graph.species),
        node_graph=np.where(node_mask, 0, capacity.graphs - 1).astype(np.int32),
        node_mask=node_mask,
        neighbors=filled((n, k), n - 1, np.int32, edges, senders),
        neighbor_mask=filled((n, k), False, bool, edges, True),
        shifts=filled((n, k, 3), 0, dtype, edges, graph.shifts),
        reverse=halo,
        cell=np.tile(np.stack([graph.cell, *[np.eye(3)] * (capacity.graphs - 1)]).astype(dtype), (devices, 1, 1, 1)),
        graph_mask=np.tile(np.arange(capacity.graphs) < 1, (devices, 1)),
    )
    return graphs, filled((n, k, 3), 3.0**-0.5, dtype, edges, vectors)  # padded slots as in `pad_vectors`


def _sent_slots(senders: np.ndarray, flat: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots `flat` [E] listed by their `senders` [E], [rows, width], and where there are any."""
    order = np.argsort(senders, kind="stable")
    at = (senders[order], numbered(senders[order], np.bincount(senders)))
    slots, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
    slots[at], mask[at] = flat[order], True
    return slots, mask
