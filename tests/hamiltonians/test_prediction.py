"""Predictions: H0 plus blocks, shapes that are compiled once, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals
from equijax.structure import Structure
from tests.hamiltonians.toy import toy_model, waters

without_pyscf = pytest.mark.skipif(importlib.util.find_spec("pyscf") is not None, reason="PySCF is installed")


@pytest.fixture(scope="module")
def model():
    return toy_model()


def test_properties_follow_from_the_correction(model):
    frames = waters(3)
    names = ("hamiltonian", "correction", "overlap", "orbital_energies", "density", "homo", "lumo", "gap")
    for frame, result in zip(frames, model.predict(frames, names), strict=True):
        assert tuple(result) == names
        np.testing.assert_array_equal(result["correction"], result["correction"].T)
        np.testing.assert_array_equal(result["hamiltonian"], frame.labels["initial_hamiltonian"] + result["correction"])
        orbitals = molecular_orbitals(result["hamiltonian"], frame.labels["overlap"], 5)
        np.testing.assert_array_equal(result["orbital_energies"], orbitals.energies)
        assert result["gap"] == result["lumo"] - result["homo"] > 0
        assert np.trace(result["density"] @ result["overlap"]) == pytest.approx(10)


def test_alone_as_in_a_batch_and_one_compilation_per_shape():
    model, frames = toy_model(), waters(7)
    together = model.predict(frames, ("correction",))
    for frame, result in zip(frames, together, strict=True):
        alone = model.predict(frame, ("correction",))
        np.testing.assert_allclose(alone["correction"], result["correction"], atol=1e-14)
    assert model.compile_count == 2
    model.predict(frames[:6], ("correction",))
    assert model.compile_count <= 3


def test_what_cannot_be_predicted_is_refused(model):
    (frame,) = waters(1)
    with pytest.raises(EquijaxError, match="no property 'energy'"):
        model.predict(frame, ("energy",))
    with pytest.raises(EquijaxError, match="did you mean 'hamiltonian'"):
        model.predict(frame, ("hamiltonien",))
    periodic = dataclasses.replace(frame, cell=10 * np.eye(3), pbc=(True, True, True))
    with pytest.raises(EquijaxError, match=r"toy.npz frame 0: pbc: .*molecules only"):
        model.predict(periodic)
    other = dataclasses.replace(frame, info={"basis": "def2-svp", "functional": "pbe"})
    with pytest.raises(EquijaxError, match="functional: is pbe, and the model was trained on b3lyp5"):
        model.predict(other)
    with pytest.raises(EquijaxError, match="element the model does not support"):
        model.predict(Structure(np.array([6, 1, 1, 1, 1]), np.eye(5)[:, :3]))
    with pytest.raises(EquijaxError, match="expected a Structure or an ASE Atoms"):
        model.predict("water")


@without_pyscf
def test_without_pyscf_the_message_says_what_to_install(model):
    (frame,) = waters(1)
    bare = Structure(frame.atomic_numbers, frame.positions)
    assert model.predict(bare, ("correction",))["correction"].shape == (24, 24)
    with pytest.raises(EquijaxError, match=r"PySCF is not installed.*equijax\[data\]"):
        model.predict(bare)
