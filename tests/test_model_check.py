"""The checks of a model find what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from equijax import model_check
from equijax.model_check import check_potential, random_cluster
from tests.toy_model import ToyConfig


class Spring:
    """Pairwise harmonic wells inside a cutoff, with faults to switch on; stands in for a Potential."""

    elements = (1, 8)
    cutoff = 4.0
    atomic_energies = {1: -13.0, 8: -2000.0}  # noqa: RUF012
    model_config = ToyConfig()
    is_conservative = True

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def isolated_energies(self, numbers):
        return np.array([self.atomic_energies[int(z)] for z in numbers])

    def predict(self, structure, properties, dtype):
        positions = structure.positions
        vectors = positions[:, None] - positions[None]
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(positions)) * 1e9
        inside = np.maximum(self.cutoff - distances, 0.0)
        power = 1 if self.fault == "kink" else 4
        energy = 0.5 * 1e-3 * (inside**power).sum() + self.isolated_energies(structure.atomic_numbers).sum()
        slope = -1e-3 * power * inside ** (power - 1) * (inside > 0)
        forces = -(slope / distances)[..., None] * vectors
        forces = forces.sum(axis=1)
        if self.fault == "forces":
            forces = forces * 1.01
        if self.fault == "direction":
            energy += 1e-3 * np.tanh(positions[:, 0]).sum()
        if self.fault == "isolated":
            energy += 0.1
        return {"energy": energy, "forces": forces}


FAULTS = {
    "forces": "forces are minus the gradient of the energy",
    "direction": "energy under rotation",
    "kink": "forces vanish at the cutoff",
    "isolated": "an isolated atom has its reference energy",
}


def test_a_sound_potential_passes():
    assert [check.name for check in check_potential(Spring()) if not check.passed] == []


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_faults_are_found(fault):
    assert FAULTS[fault] in [check.name for check in check_potential(Spring(fault)) if not check.passed]


def test_not_a_number_fails():
    assert not model_check.PropertyCheck("x", float("nan"), 1.0, "eV").passed


def test_random_clusters_hold_all_elements_at_sane_distances():
    cluster = random_cluster((1, 6, 8, 29), seed=3)
    assert set(cluster.atomic_numbers.tolist()) == {1, 6, 8, 29}
    distances = np.linalg.norm(cluster.positions[:, None] - cluster.positions[None], axis=-1)
    assert distances[np.triu_indices(len(cluster), 1)].min() > 0.5
