"""The model file gives back the same bits, and the same predictions."""

from __future__ import annotations

import jax
import numpy as np

from equijax.weights.model_file import load_potential, save_potential

from .structures import everything
from .subject import OUTPUTS


def test_model_file(subject, tmp_path):
    path = save_potential(subject.potential, tmp_path / "model.safetensors")
    loaded = load_potential(path)
    assert loaded.model_config == subject.config
    assert loaded.statistics == subject.potential.statistics
    assert loaded.atomic_energies == subject.potential.atomic_energies
    assert loaded.dtype == subject.dtype
    before, after = (dict(jax.tree_util.tree_leaves_with_path(p)) for p in (subject.params, loaded.params))
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        np.testing.assert_array_equal(after[name], tensor)
    for one, other in zip(
        subject.evaluate(everything()), subject.evaluate(everything(), params=loaded.params), strict=True
    ):
        for key in OUTPUTS:
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
