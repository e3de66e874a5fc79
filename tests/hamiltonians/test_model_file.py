"""Files of models of Hamiltonians: round trip, damage, and the other kind of model in the wrong place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import equijax
from equijax.errors import EquijaxError
from equijax.weights.hamiltonian_file import save_hamiltonian_model
from equijax.weights.model_file import digest, load_potential
from tests.hamiltonians.toy import toy_model, waters


@pytest.fixture(scope="module")
def model():
    return toy_model(kept=((1, 3),))


@pytest.fixture
def path(model, tmp_path):
    return save_hamiltonian_model(model, tmp_path / "model.safetensors")


def changed(path, change):
    """The file with another description, and a checksum that fits."""
    with safe_open(path, framework="np") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        description = json.loads(stream.metadata()["equijax_model"])
    change(description, tensors)
    text = json.dumps(description, sort_keys=True)
    save_file(tensors, path, {"equijax_model": text, "sha256": digest(text, tensors)})
    return path


def test_round_trip(model, path):
    loaded = equijax.load(path)
    assert repr(loaded) == repr(model)
    assert loaded.kept_paths == ((1, 3),)
    assert loaded.statistics == model.statistics
    frames = waters(2)
    one, two = (m.predict(frames, ("hamiltonian", "gap")) for m in (model, loaded))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["hamiltonian"], b["hamiltonian"])
        assert a["gap"] == b["gap"]


def test_a_changed_byte_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(EquijaxError, match="checksum does not match"):
        equijax.load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("basis", "def2-tzvp", "basis: is def2-tzvp, the model has def2-svp"),
        ("units", {"hamiltonian": "eV"}, "units: is .*expected"),
        ("orbital_order", "pyscf", "orbital_order: is pyscf; expected e3nn"),
        ("kept_paths", [[1]], "parameter .* has shape"),
        ("kept_paths", [[1, 3_000_000]], "kept_paths: holds 3000000"),
        ("kept_paths", None, "parameter .* has shape"),
        ("functional", ..., "expected a complete description"),
        ("model", {"name": "sphnett"}, "did you mean 'sphnet'"),
        ("format_version", 99, "install a newer equijax"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(path, key, value, message):
    def change(description, tensors):
        if value is ...:
            del description[key]
        else:
            description[key] = value

    with pytest.raises(EquijaxError, match=message) as error:
        equijax.load(changed(path, change))
    assert str(path) in str(error.value)


def test_parameters_that_are_not_finite_are_not_used(path, model):
    def change(description, tensors):
        tensors["gate"][0] = np.nan

    with pytest.raises(EquijaxError, match="gate: is not finite"):
        equijax.load(changed(path, change))


def test_what_needs_energies_says_that_this_model_has_none(path):
    with pytest.raises(EquijaxError, match="toy_hamiltonian predicts Hamiltonians, and this needs a potential"):
        load_potential(path)
    with pytest.raises(EquijaxError, match="predicts Hamiltonians, and this needs a potential"):
        equijax.EquijaxCalculator(path)
    with pytest.raises(EquijaxError, match="needs a potential; a HamiltonianModel has no energies"):
        equijax.EquijaxCalculator(equijax.load(path))
