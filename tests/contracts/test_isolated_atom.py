"""An atom without neighbours has the energy E0 to the last bit, and no force."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.structure import Structure

from .cases import CUTOFF, ELEMENTS
from .structures import ethanol, joined


def atom(z, *position):
    return Structure(np.array([z]), np.array([position or (0.0, 0.0, 0.0)]))


def assert_isolated(subject, result, rows=slice(None)):
    assert (result.node_energies[rows] == 0.0).all()
    assert (result.forces[rows] == 0.0).all()
    assert (result.stress == 0.0).all() or rows != slice(None)


@pytest.mark.parametrize("z", ELEMENTS)
def test_alone(subject, z):
    (result,) = subject.evaluate([atom(z)])
    assert_isolated(subject, result)
    e0 = subject.potential.isolated_energies(np.array([z]))
    assert (e0 + result.node_energies.astype(np.float64)).sum() == subject.potential.atomic_energies[z]


def test_in_a_batch(subject):
    results = subject.evaluate([atom(1), ethanol(), atom(6), atom(8)])
    for index in (0, 2, 3):
        assert_isolated(subject, results[index])
        assert results[index].energy == 0.0
    assert results[1].energy != 0.0


def test_beside_a_molecule(subject):
    (result,) = subject.evaluate([joined(ethanol(), atom(8, 0.0, 0.0, 30.0))])
    assert_isolated(subject, result, slice(9, 10))


def test_pair_beyond_the_cutoff(subject):
    pair = joined(atom(1), atom(8, CUTOFF * (1 + 1e-6), 0.0, 0.0))
    (result,) = subject.evaluate([pair])
    assert_isolated(subject, result)
    # With a skin the list holds the pair, and it still says nothing.
    (result,) = subject.evaluate([pair], cutoff=CUTOFF + 0.5)
    assert_isolated(subject, result)


def test_in_a_large_periodic_cell(subject):
    cell = np.eye(3) * 9.0
    (result,) = subject.evaluate([Structure(np.array([6]), np.zeros((1, 3)), cell, (True,) * 3)])
    assert_isolated(subject, result)
