"""Radial networks replaced by polynomials: the same model to the tolerance, smooth, and refused where it cannot be."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from equijax.cli import main as cli
from equijax.errors import EquijaxError
from equijax.models import MACEConfig, ModelStatistics
from equijax.nn.radial_expansion import polynomial_products
from equijax.nn.receiver_blocks import blocks_above
from equijax.potential.frozen import frozen
from equijax.potential.potential import Potential, two_atom_graph
from equijax.precision import jit, precision
from equijax.weights import load_potential, save_potential

CUTOFF = 3.0
TOLERANCE = 1e-6


def random_mace(**fields) -> Potential:
    config = MACEConfig(
        hidden_irreps="4x0e+4x1o", lmax=2, correlation=2, radial_mlp=(16, 16), cutoff=CUTOFF, num_bessel=5, **fields
    )
    statistics = ModelStatistics((1, 6, 8), 6.0)
    with precision("float64"):
        module = config.build(statistics)
        graph, vectors = two_atom_graph()
        params = jit(module.init)(jax.random.key(1), graph, vectors)["params"]
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return Potential(config, statistics, {1: -13.0, 6: -1000.0, 8: -2000.0}, params, "float64")


@pytest.fixture(scope="module")
def trained():
    return random_mace()


@pytest.fixture(scope="module")
def fitted(trained):
    return frozen(trained, TOLERANCE)


def structures():
    atoms = molecule("CH3CH2OH")
    crystal = bulk("C", "diamond", a=3.4, cubic=True)
    crystal.rattle(0.1, seed=0)
    return [atoms, crystal]


def test_same_energies_forces_and_stress(trained, fitted):
    potential, _ = fitted
    for atoms in structures():
        names = ("energy", "forces", "stress") if atoms.cell.rank == 3 else ("energy", "forces")
        exact, found = trained.predict(atoms, names), potential.predict(atoms, names)
        scale = np.abs(exact["forces"]).max()
        assert scale > 1e-3
        assert abs(found["energy"] - exact["energy"]) < 20 * TOLERANCE * max(1.0, scale) * len(atoms)
        for name in names[1:]:
            np.testing.assert_allclose(found[name], exact[name], atol=50 * TOLERANCE * scale)
        # It is a fit: the two must not be the same function.
        assert not np.array_equal(found["forces"], exact["forces"])


def test_the_reported_errors_are_those_of_the_weights(trained, fitted):
    potential, fits = fitted
    r = np.linspace(0.05, CUTOFF, 701)
    layers = [trained.params["interactions_1"]["radial_mlp"][f"layer_{i}"] for i in range(3)]
    bessel = np.sqrt(2 / CUTOFF) * np.sin(np.arange(1, 6) * np.pi / CUTOFF * r[:, None]) / r[:, None]
    u = r / CUTOFF
    envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
    x = bessel * envelope[:, None]
    for layer in layers[:-1]:
        x = x @ layer / np.sqrt(len(layer))
        x = 1.6765324703310909 * x / (1 + np.exp(-x))
    exact = x @ layers[-1] / np.sqrt(len(layers[-1]))
    expansion = potential.params["interactions_1"]["radial_expansion"]
    count = potential.model_config.radial_expansion.polynomials
    with precision("float64"):
        values = np.asarray(polynomial_products(r, CUTOFF, count))
    error = np.abs(envelope[:, None] * (values @ expansion["polynomials"] @ expansion["paths"]) - exact).max()
    assert error <= 2 * fits[1].value_error * np.abs(exact).max() + 1e-12
    assert all(max(fit[2:]) <= TOLERANCE for fit in fits)
    assert fits[1].value_error > 1e-14


def test_smooth_at_the_cutoff_and_nothing_beyond(trained, fitted):
    potential, _ = fitted

    def dimer(r: float) -> dict:
        return potential.predict(Atoms("CO", [[0, 0, 0], [r, 0, 0]]))

    isolated = -3000.0
    assert dimer(CUTOFF + 0.1)["energy"] == isolated
    inside = dimer(CUTOFF - 1e-4)
    assert abs(inside["energy"] - isolated) < 1e-9
    assert np.abs(inside["forces"]).max() < 1e-5


def test_forces_are_the_gradient(fitted):
    potential, _ = fitted
    atoms = structures()[0]
    forces, step = potential.predict(atoms)["forces"], 1e-4
    for atom, axis in ((0, 0), (4, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(potential.predict(moved)["energy"])
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)


def test_blocks_and_an_edge_beyond_the_cutoff(fitted):
    """A list with a skin has edges longer than the cutoff, where the polynomials alone would be astronomical."""
    from equijax.calculators import EquijaxCalculator

    potential, _ = fitted
    atoms = structures()[1]
    expected = potential.predict(atoms)["forces"]
    atoms.calc = EquijaxCalculator(dataclasses.replace(potential), skin=2.0)
    with blocks_above(0):
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-11)


def test_polynomials_are_a_basis():
    x = np.cos(np.pi * (np.arange(32) + 0.5) / 32)
    with precision("float64"):
        values = np.asarray(polynomial_products((x + 1) * CUTOFF / 2, CUTOFF, 32))
    assert np.linalg.cond(values) < 10
    np.testing.assert_allclose(values[:, 8 + 3], np.cos(3 * np.arccos(x)) * np.cos(8 * np.arccos(x)), atol=1e-13)


def test_refusals(trained, fitted, monkeypatch):
    with pytest.raises(EquijaxError, match="frozen already"):
        frozen(fitted[0])
    with pytest.raises(EquijaxError, match="tolerance is 0"):
        frozen(trained, 0.0)
    transformed = dataclasses.replace(
        trained, model_config=trained.model_config.model_copy(update={"distance_transform": "agnesi"})
    )
    with pytest.raises(EquijaxError, match="distance_transform is agnesi"):
        frozen(transformed)
    monkeypatch.setattr("equijax.potential.frozen.MOST_POLYNOMIALS", 32)
    with pytest.raises(EquijaxError, match=r"32 polynomials fit .* only"):
        frozen(trained, 1e-9)


def test_command_line(trained, tmp_path, capsys):
    source, target = tmp_path / "model.safetensors", tmp_path / "frozen.safetensors"
    save_potential(trained, source)
    assert cli.run(["freeze", str(source), "--output", str(target), "--tolerance", "1e-5"]) == 0
    assert "in place of the radial networks" in capsys.readouterr().out
    potential = load_potential(target)
    assert potential.metadata["frozen"] == {"tolerance": 1e-5}
    atoms = structures()[0]
    np.testing.assert_allclose(potential.predict(atoms)["forces"], trained.predict(atoms)["forces"], atol=1e-3)
    assert cli.run(["freeze", str(source), "--output", str(target)]) == 2
    assert "exists" in capsys.readouterr().err


def test_not_trained_again(capsys):
    expansion = "--set=model.radial_expansion={polynomials: 64, rank: 32}"
    assert cli.run(["check", "experiments/quickstart.yaml", expansion]) == 2
    assert "equijax freeze" in capsys.readouterr().err
