"""Rotations, mirror images, translations and the order of atoms, of blocks and of padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from equijax.graph.padding import Capacity
from equijax.structure import Structure

from ..structures import random_rotation, rattled
from .subject import HamiltonianBlocks, largest_difference, moved

WATER, METHANOL = rattled("H2O"), rattled("CH3OH")
TOLERANCE = {"float64": 1e-11, "float32": 1e-5}


@pytest.mark.parametrize("what", ["rotation", "inversion", "reflection"])
def test_blocks_turn_with_the_molecule(subject, what):
    rotation = random_rotation(1)
    matrix = {"rotation": rotation, "inversion": -np.eye(3), "reflection": -rotation}[what]
    d = subject.matrix(matrix)
    before = subject.evaluate([METHANOL, WATER])
    after = subject.evaluate([moved(METHANOL, matrix, 0.7), moved(WATER, matrix, -2.0)])
    for one, other in zip(before, after, strict=True):
        expected = HamiltonianBlocks(d @ one.atoms @ d.T, d @ one.pairs @ d.T)
        assert largest_difference(other, expected) < TOLERANCE[subject.dtype]
        assert largest_difference(other, one) > 1e-2


def test_order_of_atoms(subject):
    order = np.array([3, 5, 1, 0, 4, 2])
    shuffled = Structure(METHANOL.atomic_numbers[order], METHANOL.positions[order])
    (one,), (other,) = subject.evaluate([METHANOL]), subject.evaluate([shuffled])
    number = {pair: k for k, pair in enumerate(zip(*np.triu_indices(6, 1)))}
    expected = np.array(
        [
            one.pairs[number[order[i], order[j]]] if order[i] < order[j] else one.pairs[number[order[j], order[i]]].T
            for i, j in number
        ]
    )
    assert largest_difference(other, HamiltonianBlocks(one.atoms[order], expected)) < TOLERANCE[subject.dtype]


def test_same_atom_blocks_are_symmetric_and_empty_slots_zero(subject):
    (found,) = subject.evaluate([METHANOL])
    assert np.abs(found.atoms - found.atoms.swapaxes(1, 2)).max() < TOLERANCE[subject.dtype]
    masks = np.array([subject.layout.mask(z) for z in METHANOL.atomic_numbers])
    one, two = np.triu_indices(6, 1)
    for blocks, on in (
        (found.atoms, masks[:, :, None] & masks[:, None]),
        (found.pairs, masks[one][:, :, None] & masks[two][:, None]),
    ):
        assert (blocks[~on] == 0).all()
        assert (blocks[on] != 0).all()


def test_alone_as_in_a_batch_and_whatever_the_padding(subject):
    together = subject.evaluate([WATER, METHANOL, WATER])
    for found, structure in zip(together, (WATER, METHANOL, WATER), strict=True):
        (alone,) = subject.evaluate([structure])
        assert largest_difference(found, alone) < TOLERANCE[subject.dtype]


@pytest.mark.slow
def test_another_bucket(subject):
    (one,) = subject.evaluate([METHANOL])
    (other,) = subject.evaluate([METHANOL], (Capacity(nodes=8, neighbors=8, graphs=2), 16))
    assert largest_difference(other, one) < TOLERANCE[subject.dtype]


def test_ghosts_are_zero_and_may_be_nan(subject):
    graph, pairs = subject.pack([METHANOL])
    positions, shifts = graph.positions.copy(), graph.shifts.copy()
    positions[~graph.node_mask], shifts[~graph.neighbor_mask] = np.nan, np.nan
    clean = subject.evaluate_packed((graph, pairs))
    dirty = subject.evaluate_packed((dataclasses.replace(graph, positions=positions, shifts=shifts), pairs))
    np.testing.assert_array_equal(clean.atoms, dirty.atoms)
    np.testing.assert_array_equal(clean.pairs, dirty.pairs)
    assert (dirty.atoms[~graph.node_mask] == 0).all()
    assert (dirty.pairs[~pairs.mask] == 0).all()


def test_one_program_per_bucket(subject):
    for structures in ([WATER], [METHANOL], [WATER, METHANOL, WATER], []):
        subject.evaluate(structures)
    assert subject.counter.count <= 2  # another bucket in the slow run


def test_single_atoms_and_linear_molecules(subject):
    line = Structure(np.array([8, 6, 8]), np.array([[0.0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]))
    atom = Structure(np.array([8]), np.zeros((1, 3)))
    found = subject.evaluate([line, atom])
    for blocks in found:
        assert np.isfinite(blocks.atoms).all()
        assert np.isfinite(blocks.pairs).all()
    # A free atom is round: its blocks are multiples of one.
    s, p = subject.layout.shell_slice(0), subject.layout.shell_slice(len(subject.layout.degrees) - 1)
    assert np.abs(found[1].atoms[0][s, p]).max() < TOLERANCE[subject.dtype]
