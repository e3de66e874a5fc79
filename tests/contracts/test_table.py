"""Every row of MODELS is tested, on structures and weights that make the tests mean something."""

from __future__ import annotations

import numpy as np

from equijax.models import MODELS

from .cases import CASES, CUTOFF, WIDE_CASES
from .irreps_matrices import feature_slices
from .structures import everything


def test_every_row_has_a_case():
    assert set(CASES) == set(MODELS)
    assert set(WIDE_CASES) <= set(MODELS)
    for name, case in CASES.items():
        assert type(case.config) is MODELS[name]
        assert case.config.name == name
        assert case.config.cutoff == CUTOFF


def test_features_and_forces_are_of_order_one(subject):
    """Weights that make directional features vanish would pass every symmetry test."""
    results = subject.evaluate(everything())
    features = np.concatenate([r.node_features for r in results])
    blocks = feature_slices(subject.case.feature_irreps)
    assert blocks[-1][1].stop == features.shape[1]
    for l, columns in blocks:
        size = np.sqrt(np.mean(features[:, columns] ** 2))
        assert 0.1 < size < 100, f"degree {l}: {size}"
    assert np.ptp(np.concatenate([r.node_energies for r in results])) > 0.1
    for result in results:
        assert np.abs(result.forces).max() > 0.1
        assert result.node_features.dtype == result.forces.dtype == result.stress.dtype == np.dtype(subject.dtype)
