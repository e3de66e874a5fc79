"""ZBL in every model: the analytic pair energy comes on top of the network, and it is refused beside direct forces."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pydantic
import pytest

from equijax.models import MODELS
from equijax.models.contract import ModelStatistics
from equijax.models.repulsion import POWER
from equijax.potential.potential import Potential, parameter_shapes
from equijax.structure import Structure
from tests.contracts.cases import CASES

PHI = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016))


def pair_energy(r: float, p: int) -> float:
    """C and O, eV, with the polynomial envelope of power p that ends at 0.76 + 0.66 Å."""
    a = 0.4543 * 0.529 / (6**0.3 + 8**0.3)
    x = r / (0.76 + 0.66)
    envelope = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return 14.3996 * 48 / r * sum(c * np.exp(-d * r / a) for c, d in PHI) * (envelope if x < 1 else 0.0)


def test_every_model_has_a_row():
    assert all("zbl" in config.model_fields for config in MODELS.values())


@pytest.mark.parametrize(
    "name", ["tensornet", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "tensornet")]
)
def test_energy_and_force_are_those_of_the_pair_where_the_network_is_silent(name):
    config = CASES[name].config.model_copy(update={"zbl": True})
    statistics = ModelStatistics(atomic_numbers=(6, 8), avg_num_neighbors=1.0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), parameter_shapes(config.build(statistics)))
    potential = Potential(config, statistics, {6: 0.0, 8: 0.0}, zeros, dtype="float64")
    near = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [0.3, 0.4, 0.6]]))
    far = dataclasses.replace(near, positions=np.array([[0.0, 0, 0], [0, 0, 1.43]]))
    close, distant = potential.predict([near, far], ("energy", "forces"))
    p = config.polynomial_cutoff_power if name == "mace" else POWER  # that of its other envelopes, as in mace-torch
    r, h = float(np.linalg.norm(near.positions[1])), 1e-4
    slope = (pair_energy(r + h, p) - pair_energy(r - h, p)) / (2 * h)
    assert pair_energy(r, p) > 1.0
    assert float(close["energy"]) == pytest.approx(pair_energy(r, p), rel=1e-9)
    np.testing.assert_allclose(close["forces"][1], -slope * near.positions[1] / r, rtol=1e-5)
    assert float(distant["energy"]) == 0.0
    assert not distant["forces"].any()


@pytest.mark.parametrize("name", ["tdn", "equiformer_v2"])
def test_refused_beside_direct_forces(name):
    with pytest.raises(pydantic.ValidationError, match="direct forces would not have its repulsion"):
        MODELS[name](zbl=True, forces="direct")
