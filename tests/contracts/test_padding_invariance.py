"""Padding changes nothing: one to four times the room, and NaN in everything a ghost owns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from .cases import BASE, TIGHT
from .structures import everything, methanol
from .subject import OUTPUTS, split


def test_four_times_the_room(subject, within):
    molecule = methanol()
    assert len(molecule) + 1 >= TIGHT.nodes - 1
    assert BASE.neighbors == 4 * TIGHT.neighbors
    (tight,) = subject.evaluate([molecule], TIGHT)
    (loose,) = subject.evaluate([molecule], BASE)
    for key in OUTPUTS:
        within(getattr(loose, key), getattr(tight, key), subject.tolerance.batch, f"padding {key}")


def poisoned(graph):
    """NaN positions and cells of ghosts, NaN shifts of padded slots."""
    positions, cell, shifts = graph.positions.copy(), graph.cell.copy(), graph.shifts.copy()
    positions[~graph.node_mask] = np.nan
    cell[~graph.graph_mask] = np.nan
    shifts[~graph.neighbor_mask] = np.nan
    return dataclasses.replace(graph, positions=positions, cell=cell, shifts=shifts)


@pytest.mark.parametrize("structures", [everything(), [methanol()], []], ids=["full", "mostly-padding", "empty"])
def test_nan_padding_is_bitwise_the_same(subject, structures):
    graph = subject.pack(structures)
    clean, dirty = subject.evaluate_graph(graph), subject.evaluate_graph(poisoned(graph))
    for one, other in zip(split(clean, structures), split(dirty, structures), strict=True):
        for key in OUTPUTS:
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    for found in (clean, dirty):
        assert (found.node_energies[~graph.node_mask] == 0).all()
        assert (found.node_features[~graph.node_mask] == 0).all()
        assert (found.energy[~graph.graph_mask] == 0).all()
        assert (found.forces[~graph.node_mask] == 0).all()
        assert (found.stress[~graph.graph_mask] == 0).all()


def test_nan_padding_leaves_the_training_gradient_alone(subject):
    import jax

    graph = subject.pack([methanol()])
    target = jax.tree.map(np.zeros_like, subject.evaluate_graph(graph))
    loss, gradient = subject.loss_and_gradient(subject.params, graph, target)
    dirty_loss, dirty_gradient = subject.loss_and_gradient(subject.params, poisoned(graph), target)
    assert loss == dirty_loss > 0
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(dirty_gradient), strict=True):
        np.testing.assert_array_equal(one, other)
