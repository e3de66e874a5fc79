"""A nudged elastic band whose images share the calls of the model."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.mep import NEB
from ase.optimize import FIRE

from equijax import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.statics import BatchedImages, relax
from tests.statics.pair_model import pair_potential

MORSE = pair_potential(0.8, kind="morse", cutoff=6.0, length=3.0)


def test_a_band_between_two_rhombi():
    """Four atoms in a plane: the short diagonal of the rhombus changes over, through the square."""
    rhombus = Atoms("Ar4", positions=[[1.5, 0, 0], [-1.5, 0, 0], [0, 2.6, 0], [0, -2.6, 0]])
    start = relax(MORSE, rhombus, fmax=1e-3).atoms
    end = start.copy()
    end.positions = start.positions[:, [1, 0, 2]][[2, 3, 0, 1]]
    images = [start.copy(), *(start.copy() for _ in range(3)), end]
    band = NEB(images, climb=True, method="improvedtangent")
    band.interpolate()
    together = BatchedImages(MORSE, images)
    optimizer = FIRE(band, logfile=None)
    assert optimizer.run(fmax=0.02, steps=200)
    energies = [image.get_potential_energy() for image in images]
    assert energies[2] > energies[0] + 0.1
    assert energies[0] == pytest.approx(energies[4], abs=1e-9)
    # One call for the three images per step, not three.
    assert together.batches <= optimizer.nsteps + 3
    middle = images[2]
    shared = middle.get_forces()
    alone = middle.copy()
    alone.calc = EquijaxCalculator(MORSE)
    np.testing.assert_allclose(shared, alone.get_forces(), atol=1e-11)
    square = np.linalg.norm(middle.positions - middle.positions.mean(axis=0), axis=1)
    np.testing.assert_allclose(square, square[0], atol=0.02)
    stray = middle.copy()
    stray.calc = middle.calc
    stray.rattle()
    with pytest.raises(EquijaxError, match="belongs to one image"):
        stray.get_forces()
