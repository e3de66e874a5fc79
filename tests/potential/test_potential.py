"""Prediction: one structure or many, every property, the errors a user can make."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from equijax.errors import EquijaxError
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.potential import parameter_shapes
from equijax.structure import Structure
from tests.toy_model import toy_potential

POTENTIAL = toy_potential(dtype="float64")


def rattled(name: str, seed: int = 0) -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_a_single_structure_gives_a_dict():
    atoms = rattled("CH3CH2OH")
    properties = ("energy", "energies", "forces", "node_features", "hessian")
    result = POTENTIAL.predict(atoms, properties)
    assert tuple(result) == properties
    assert result["energies"].shape == (9,)
    assert result["forces"].shape == (9, 3)
    assert result["hessian"].shape == (27, 27)
    assert result["energy"] == pytest.approx(result["energies"].sum(), abs=1e-10)
    assert result["forces"].dtype == np.float64
    result["forces"][0] = 0  # a copy that the caller may change


def test_many_structures_keep_their_order_and_equal_single_predictions():
    names = ["H2O", "CH3CH2OH", "CH4", "C6H6", "H2", "CO2"] * 3
    frames = [rattled(name, seed) for seed, name in enumerate(names)]
    together = POTENTIAL.predict(frames)
    for frame, result in zip(frames, together, strict=True):
        alone = POTENTIAL.predict(frame)
        assert result["energy"] == pytest.approx(alone["energy"], abs=1e-11)
        np.testing.assert_allclose(result["forces"], alone["forces"], atol=1e-11)


def test_an_isolated_atom_has_its_own_energy():
    result = POTENTIAL.predict(Atoms("O"), ("energy", "forces"))
    assert result["energy"] == POTENTIAL.atomic_energies[8]
    assert not result["forces"].any()


def test_energy_without_derivatives_is_the_same():
    atoms = rattled("C6H6")
    assert POTENTIAL.predict(atoms, ("energy",))["energy"] == pytest.approx(
        POTENTIAL.predict(atoms, ("energy", "forces"))["energy"], abs=1e-11
    )


def test_float32_far_from_the_origin_is_as_good_as_near_it():
    atoms = rattled("CH3CH2OH")
    near = POTENTIAL.predict(atoms, dtype="float32")
    assert near["forces"].dtype == np.float32
    atoms.positions += 3e5
    far = POTENTIAL.predict(atoms, dtype="float32")
    np.testing.assert_allclose(far["forces"], near["forces"], atol=2e-5)


def test_stress_of_a_crystal_and_of_a_molecule():
    potential = toy_potential((6,), dtype="float64")
    crystal = bulk("C")
    crystal.rattle(0.02, seed=0)
    assert potential.predict(crystal, ("stress",))["stress"].shape == (3, 3)
    with pytest.raises(EquijaxError, match=r"stress: has no stress: it is not periodic"):
        POTENTIAL.predict(rattled("H2O"), ("stress",))


def test_compilations_are_shared_between_calls():
    potential = toy_potential(seed=1)
    for seed in range(3):
        potential.predict([rattled("H2O", seed), rattled("CH4", seed)])
    assert potential.evaluator().compile_count == 1


def test_unknown_property_and_element():
    with pytest.raises(EquijaxError, match="no property 'force'; did you mean 'forces'"):
        POTENTIAL.predict(rattled("H2O"), ("force",))
    structure = Structure(np.array([1, 79]), np.array([[0.0, 0, 0], [0, 0, 2]]), file="a.xyz", frame=7)
    with pytest.raises(EquijaxError, match=r"a.xyz frame 7: atom 1 is Au .*supported: H \(1\), C \(6\), O \(8\)"):
        POTENTIAL.predict(structure)
    with pytest.raises(EquijaxError, match="cannot predict for a dict"):
        POTENTIAL.predict([{}])
    with pytest.raises(EquijaxError, match="has no atoms"):
        POTENTIAL.predict(Atoms())


def test_missing_atomic_energies_and_wrong_parameters():
    with pytest.raises(EquijaxError, match=r"atomic energies are missing .* \[8\]"):
        dataclasses.replace(POTENTIAL, atomic_energies={1: 0.0, 6: 0.0})
    with pytest.raises(EquijaxError, match="not finite"):
        dataclasses.replace(POTENTIAL, atomic_energies={1: 0.0, 6: 0.0, 8: float("nan")})
    with pytest.raises(EquijaxError, match=r"parameter embedding has shape \(2, 2\); expected \(3, 4\)"):
        dataclasses.replace(POTENTIAL, params={**POTENTIAL.params, "embedding": np.ones((2, 2))}).check_parameters()
    with pytest.raises(EquijaxError, match=r"embeding does not belong .* did you mean 'embedding'"):
        dataclasses.replace(POTENTIAL, params={**POTENTIAL.params, "embeding": np.ones(2)}).check_parameters()
    with pytest.raises(EquijaxError, match=r"parameter readout .* is missing"):
        dataclasses.replace(POTENTIAL, params={"embedding": POTENTIAL.params["embedding"]}).check_parameters()


def test_shapes_of_parameters_compile_nothing(caplog):
    module = MACEConfig(hidden_irreps="2x0e", num_layers=1, lmax=1, correlation=1, radial_mlp=[2]).build(
        ModelStatistics(atomic_numbers=(1,), avg_num_neighbors=1.0)
    )
    with jax.log_compiles():
        parameter_shapes(module)
    assert not [record for record in caplog.records if "XLA compilation" in record.getMessage()]
    with jax.log_compiles():
        jax.jit(lambda x: x + 7)(1.0)
    assert [record for record in caplog.records if "XLA compilation" in record.getMessage()]
