"""A translated structure: the same energies, forces, stress and features."""

from __future__ import annotations

import numpy as np
import pytest

from .structures import everything, moved
from .subject import OUTPUTS, split


@pytest.mark.parametrize("displacement", [(0.7, -1.9, 0.3), (1e4, -3e3, 5e4)], ids=["near", "far"])
def test_translation(subject, within, displacement):
    structures = everything()
    shifted = [moved(s, np.array(displacement)) for s in structures]
    # Prediction takes edge vectors from the host, training from the positions of the batch.
    of_prediction, of_training = subject.evaluate(shifted), subject.evaluate_graph(subject.pack(shifted))
    # 1e4 Å cost four digits of every coordinate before the model sees it.
    tolerance = max(subject.tolerance.symmetry, 1e-15 * np.abs(displacement).max() * 10)
    expected = subject.evaluate(structures)
    for shifted_results in (of_prediction, split(of_training, structures)):
        for before, after in zip(expected, shifted_results, strict=True):
            for key in OUTPUTS:
                within(getattr(after, key), getattr(before, key), tolerance, f"translation {key}")
