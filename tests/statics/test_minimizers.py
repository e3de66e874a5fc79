"""What L-BFGS does when the energy contradicts the forces, and relaxation in float32."""

from __future__ import annotations

import jax
import numpy as np
from ase.build import bulk

from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.statics import relax
from equijax.statics.coordinates import Coordinates, Frame, Objective
from equijax.statics.minimizers import LBFGS
from equijax.structure import Structure
from tests.statics.pair_model import pair_potential


def test_energies_that_contradict_the_forces_end_as_stuck():
    """One graph goes downhill, the energy of the other rises whatever it tries."""
    pair = structure_graph(Structure(np.array([18, 18]), np.array([[0.0, 0, 0], [1, 0, 0]])), 1.2, (18,))
    graph = batch([pair, pair], Capacity(5, 1, 3))
    zeros = np.zeros((3, 3, 3), np.float32)
    frame = Frame(np.ones((5, 3), np.float32), zeros, np.ones(3, np.float32), zeros, np.float32(0))
    minimizer = LBFGS(max_move=0.2)
    state = jax.tree.map(lambda leaf: leaf.astype(np.float32), minimizer.start(5, 3, np))
    step = jax.jit(minimizer.step)
    place, rows = np.zeros((5, 3)), slice(0, 2)
    for call in range(40):
        gradient = np.ones((5, 3), np.float32)
        gradient[rows] = place[rows] - 1.0  # a harmonic well at 1
        energy = np.array([0.5 * np.sum((place[rows] - 1) ** 2), call, 0], np.float32)
        ones = np.ones(3, np.float32)
        at = Objective(energy, Coordinates(gradient, zeros), 1e-6 * ones, ones, 0 * ones)
        move, state, stuck = step(state, at, graph, frame)
        place = place + np.asarray(move.atoms)
        assert np.linalg.norm(np.asarray(move.atoms), axis=1).max() <= 0.2 * (1 + 1e-5)
        if stuck[1]:
            break
    assert 15 <= call < 20
    np.testing.assert_allclose(place[rows], 1, atol=1e-3)
    assert not stuck[0]
    # The other one is back within rounding of where it began.
    assert np.abs(place[2:4]).max() < 1e-3


def test_float32_reaches_the_same_minimum():
    morse = pair_potential(0.8, kind="morse", cutoff=6.0, length=3.0)
    start = bulk("Ar", "fcc", a=4.4) * (2, 1, 1)
    start.rattle(0.1, seed=0)
    single = relax(morse, start, dtype="float32", cell="full", fmax=0.005, smax=0.05)
    double = relax(morse, start, cell="full", fmax=0.005, smax=0.05)
    assert single.converged, single.message
    np.testing.assert_allclose(single.atoms.cell.cellpar(), double.atoms.cell.cellpar(), atol=5e-3)
    np.testing.assert_allclose(single.atoms.get_potential_energy(), double.atoms.get_potential_energy(), atol=1e-4)
