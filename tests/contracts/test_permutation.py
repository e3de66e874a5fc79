"""The order of atoms, of neighbour slots and of structures means nothing."""

from __future__ import annotations

import dataclasses

import numpy as np

from .structures import everything
from .subject import OUTPUTS, split

PER_ATOM = ("node_energies", "node_features", "forces")


def test_order_of_atoms(subject, within):
    structures = everything()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(s)) for s in structures]
    permuted = subject.evaluate(
        [
            dataclasses.replace(s, atomic_numbers=s.atomic_numbers[order], positions=s.positions[order])
            for s, order in zip(structures, orders, strict=True)
        ]
    )
    for before, after, order in zip(subject.evaluate(structures), permuted, orders, strict=True):
        for key in OUTPUTS:
            expected = getattr(before, key)
            if key in PER_ATOM:
                expected = expected[order]
            within(getattr(after, key), expected, subject.tolerance.symmetry, f"permutation {key}")


def with_shuffled_slots(graph, rng):
    """The same edges at random slots of their rows, padding in between."""
    n, k = graph.neighbors.shape
    order = np.argsort(rng.random((n, k)), axis=1)
    # Slot (row, s) holds what was at (row, order[row, s]); `new_slot` is where an old slot went.
    old_flat = (np.arange(n)[:, None] * k + order).reshape(-1)
    new_slot = np.empty(n * k, np.int32)
    new_slot[old_flat] = np.arange(n * k)
    return dataclasses.replace(
        graph,
        neighbors=graph.neighbors.reshape(-1)[old_flat].reshape(n, k),
        neighbor_mask=graph.neighbor_mask.reshape(-1)[old_flat].reshape(n, k),
        shifts=graph.shifts.reshape(-1, 3)[old_flat].reshape(n, k, 3),
        reverse=new_slot[graph.reverse.reshape(-1)[old_flat]].reshape(n, k),
    )


def test_order_of_neighbor_slots(subject, within):
    structures = everything()
    graph = subject.pack(structures)
    shuffled = with_shuffled_slots(graph, np.random.default_rng(1))
    assert not np.array_equal(shuffled.neighbors, graph.neighbors)
    after = split(subject.evaluate_graph(shuffled), structures)
    for one, other in zip(split(subject.evaluate_graph(graph), structures), after, strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject.tolerance.symmetry, f"neighbour slots {key}")


def test_order_of_structures(subject, within):
    structures = everything()
    reversed_batch = subject.evaluate(structures[::-1])[::-1]
    for one, other in zip(subject.evaluate(structures), reversed_batch, strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject.tolerance.batch, f"order of structures {key}")
