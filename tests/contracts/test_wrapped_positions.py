"""Atoms outside the cell are their images inside."""

from __future__ import annotations

import numpy as np

from .structures import crystal, moved, slab, small_crystal
from .subject import OUTPUTS


def test_wrapped_and_unwrapped(subject, within):
    structures = [crystal(), small_crystal(), slab()]
    rng = np.random.default_rng(4)
    unwrapped = []
    for s in structures:
        images = rng.integers(-5, 6, (len(s), 3)) * np.array(s.pbc)
        assert np.abs(images).max() > 1
        unwrapped.append(moved(s, images @ s.cell))
    for one, other in zip(subject.evaluate(structures), subject.evaluate(unwrapped), strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject.tolerance.symmetry, f"wrapping {key}")
