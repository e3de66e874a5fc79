"""Predictions of targets: Born charges, pairs, what a periodic structure does not have, models of targets alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.models.contract import ModelStatistics
from equijax.models.targets import TargetConfig, unit_statistics, with_targets
from equijax.potential.potential import Potential, parameter_shapes
from equijax.structure import Structure
from tests.contracts.structures import methanol, moved
from tests.contracts.target_cases import STIFFNESS
from tests.toy_model import ToyConfig

ELEMENTS = (1, 6, 8)
CUTOFF = 2.5
DIPOLE = TargetConfig(tensor="i", form="charges_and_dipoles")
LOCAL = {
    "couplings": TargetConfig(irreps="0e", per="pair"),
    "shifts": TargetConfig(irreps="0e+0o", per="atom"),
}


def potential_of(targets, **options) -> Potential:
    config, statistics = ToyConfig(cutoff=CUTOFF), ModelStatistics(ELEMENTS, 3.0)
    numbers = {name: with_mean(unit_statistics(target, ELEMENTS)) for name, target in targets.items()}
    rng = np.random.default_rng(5)
    params = {
        key: _random(value, rng)
        for key, value in parameter_shapes(with_targets(config, targets, numbers, statistics)).items()
    }
    return Potential(
        config,
        statistics,
        dict.fromkeys(ELEMENTS, 0.0),
        params,
        dtype="float64",
        targets=targets,
        target_statistics=numbers,
        **options,
    )


def with_mean(statistics):
    """Positive forms need a positive one."""
    return dataclasses.replace(statistics, means=(1.7,) * len(statistics.means))


def _random(tree, rng):
    if isinstance(tree, dict):
        return {key: _random(value, rng) for key, value in tree.items()}
    return rng.normal(size=tree.shape) * tree.shape[0] ** -0.5


STEP = 1e-4
DIRECTION = np.random.default_rng(2).normal(size=(6, 3))


@pytest.fixture(scope="module")
def charged() -> Potential:
    return potential_of({"dipole": DIPOLE})


@pytest.fixture(scope="module")
def dipoles(charged) -> np.ndarray:
    """Of methanol, displaced ahead and back along DIRECTION."""
    frames = [moved(methanol(), sign * STEP * DIRECTION) for sign in (0, 1, -1)]
    return np.array([result["dipole"] for result in charged.predict(frames, ("dipole",))])


def test_born_charges_are_the_derivative_of_the_dipole_and_neutral(charged, dipoles):
    charges = charged.predict(methanol(), ("born_charges",))["born_charges"]
    assert charges.shape == (6, 3, 3)
    np.testing.assert_allclose(charges.sum(axis=0), 0, atol=1e-13 * np.abs(charges).max())
    slope = (dipoles[1] - dipoles[2]) / (2 * STEP)
    np.testing.assert_allclose(np.einsum("nab,nb->a", charges, DIRECTION), slope, atol=1e-6 * np.abs(slope).max())


def test_an_ion_has_its_charge_spread_and_its_dipole_about_the_centre_of_mass(dipoles):
    """All else is that of the neutral molecule, as the weights are."""
    ion = potential_of({"dipole": DIPOLE.model_copy(update={"total_charge": -1.0})})
    arm = methanol().positions.mean(axis=0) - methanol().to_ase().get_center_of_mass()
    np.testing.assert_allclose(ion.predict(methanol(), ("dipole",))["dipole"] - dipoles[0], -arm, atol=1e-12)


def test_pairs_beyond_the_cutoff_are_zero_and_atoms_have_rows():
    found = potential_of(LOCAL).predict(methanol(), tuple(LOCAL))
    positions = methanol().positions
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    near = (distances < CUTOFF) & ~np.eye(6, dtype=bool)
    assert 0 < near.sum() < 30
    assert found["couplings"].shape == (6, 6)
    np.testing.assert_array_equal(found["couplings"] != 0, near)
    assert found["shifts"].shape == (6, 2)


def test_what_a_periodic_structure_does_not_have(charged):
    crystal = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [1.4, 1.3, 1.5]]), np.eye(3) * 2.8, (True,) * 3)
    for name in ("dipole", "born_charges"):
        with pytest.raises(EquijaxError, match="dipole: has no dipole of charges: it is periodic"):
            charged.predict(crystal, (name,))


def test_what_a_model_of_targets_alone_does_not_have():
    potential = potential_of({"alpha": TargetConfig(tensor="ij=ji")}, trained=("alpha",))
    with pytest.raises(
        EquijaxError, match=r"there is no forces: this model was trained on alpha and never on energies"
    ):
        potential.predict(methanol(), ("forces",))
    with pytest.raises(
        EquijaxError, match="expected a model with a target named dipole, a vector per system; it has alpha"
    ):
        potential.predict(methanol(), ("born_charges",))
    with pytest.raises(EquijaxError, match="did you mean 'alpha'"):
        potential.predict(methanol(), ("alpa",))


def test_one_model_in_both_precisions():
    """Index arrays of the host are not those of one precision."""
    potential = potential_of({"stiffness": TargetConfig(tensor=STIFFNESS, form="square", reduce="mean")})
    found = [potential.predict(methanol(), ("stiffness",), dtype=d)["stiffness"] for d in ("float32", "float64")]
    np.testing.assert_allclose(*found, atol=1e-4 * np.abs(found[1]).max())
