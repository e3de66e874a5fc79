"""Uncertainties of the last layer against dense formulas and finite differences, and what calibration makes of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

from equijax.calculators.ase_calculator import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.models import MODELS
from equijax.potential.calibration import calibration_curve, factor, quality, spearman
from equijax.potential.last_layer import LastLayer, feature_columns
from equijax.potential.uncertainty import Calibration
from equijax.structure import Structure
from equijax.train.evaluate import evaluate
from equijax.train.last_layer_fit import RELATIVE_REGULARISERS, with_last_layer
from equijax.train.metrics import has_label
from equijax.weights.model_file import load_potential, save_potential
from tests.toy_model import ToyConfig, toy_potential
from tests.train.toy_training import molecules

STEP = 1e-5
TRIED = ("energy", "forces", "stress")


@pytest.fixture(scope="module")
def potential():
    return toy_potential(dtype="float64")


@pytest.fixture(scope="module")
def crystal():
    cell = np.array([[5.0, 0.3, 0], [0, 4.8, 0.2], [0.1, 0, 5.2]])
    frame = molecules(1, seed=4, sizes=(4,))[0]
    return Structure(frame.atomic_numbers, frame.positions, cell=cell, pbc=(True, True, True))


@pytest.fixture(scope="module")
def calibrated(potential):
    return with_last_layer(potential, molecules(7, seed=1), molecules(5, seed=2))


def features(potential, structures):
    """f [S, P] by adding up what `predict` gives."""
    results = potential.predict(structures, ("node_features",))
    return np.stack([result["node_features"].sum(axis=0) for result in results])


def moved(structure, positions):
    return Structure(structure.atomic_numbers, positions, cell=structure.cell, pbc=structure.pbc)


def feature_gradient(potential, structure):
    """∂f/∂r [3N, P] by central differences."""
    shifts = STEP * np.eye(3 * len(structure)).reshape(-1, len(structure), 3)
    ends = [[moved(structure, structure.positions + sign * s) for s in shifts] for sign in (1, -1)]
    up, down = (features(potential, part) for part in ends)
    return (up - down) / (2 * STEP)


def strained_gradient(potential, structure):
    """∂f/∂ε / V [9, P] by central differences of symmetric strains."""
    rows = []
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * STEP
            strain[b, a] += 0.5 * STEP
            ends = []
            for sign in (1, -1):
                deform = np.eye(3) + sign * strain
                changed = Structure(
                    structure.atomic_numbers,
                    structure.positions @ deform,
                    cell=structure.cell @ deform,
                    pbc=structure.pbc,
                )
                ends.append(features(potential, [changed])[0])
            rows.append((ends[0] - ends[1]) / (2 * STEP) / structure.volume)
    return np.stack(rows)


def test_the_variances_are_the_dense_formula(potential, crystal):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    layer = LastLayer(root @ root.T, 0.3)
    calibration = Calibration(energy=0.7, forces=1.3, stress=2.0)
    uncertain = dataclasses.replace(potential, last_layer=layer, calibration=calibration)
    inverse = np.linalg.inv(layer.gram + 0.3 * np.eye(4))
    rows = {
        "energy": features(potential, [crystal]),
        "forces": feature_gradient(potential, crystal),
        "stress": strained_gradient(potential, crystal),
    }
    found = uncertain.predict(crystal, tuple(f"{name}_uncertainty" for name in TRIED))
    for name, row in rows.items():
        variance = getattr(calibration, name) ** 2 * np.einsum("vp,pq,vq->v", row, inverse, row)
        tolerance = 1e-12 if name == "energy" else 1e-7
        np.testing.assert_allclose(found[f"{name}_uncertainty"].ravel(), np.sqrt(variance), rtol=tolerance, atol=1e-12)


def test_the_matrix_holds_energies_and_forces_of_the_training_frames(potential, calibrated):
    frames = molecules(7, seed=1)
    size = np.array([[len(s)] for s in frames])
    rows = [features(potential, frames) / size, *(feature_gradient(potential, s) for s in frames)]
    metrics = evaluate(potential, molecules(5, seed=2)).metrics
    ratio = metrics["forces"]["rmse"] / metrics["energy"]["rmse_per_atom"]  # weights of least squares
    stacked = np.concatenate([ratio * rows[0], *rows[1:]])
    np.testing.assert_allclose(calibrated.last_layer.gram, stacked.T @ stacked, rtol=1e-7, atol=1e-9)
    without = with_last_layer(potential, frames, molecules(5, seed=2), use_forces=False)
    np.testing.assert_allclose(without.last_layer.gram, rows[0].T @ rows[0], rtol=1e-10, atol=1e-12)


def test_the_regulariser_is_the_likeliest_and_squared_errors_are_variances(potential, calibrated):
    valid = molecules(5, seed=2)
    results = evaluate(calibrated, valid).predictions
    errors = {
        "energy": np.array([(p["energy"] - s.labels["energy"]) / len(s) for s, p in zip(valid, results)]),
        "forces": np.concatenate([np.ravel(p["forces"] - s.labels["forces"]) for s, p in zip(valid, results)]),
    }
    rows = {
        "energy": features(potential, valid) / np.array([[len(s)] for s in valid]),
        "forces": np.concatenate([feature_gradient(potential, s) for s in valid]),
    }
    layer, factors = calibrated.last_layer, calibrated.calibration

    def sigmas(name, regulariser):
        inverse = np.linalg.inv(layer.gram + regulariser * np.eye(4))
        raw = np.sqrt(np.einsum("vp,pq,vq->v", rows[name], inverse, rows[name]))
        return factor(errors[name], raw) * raw, factor(errors[name], raw)

    def likelihood(regulariser):
        return sum(quality(errors[name], sigmas(name, regulariser)[0])["nll"] for name in errors)

    for name in errors:
        assert sigmas(name, layer.regulariser)[1] == pytest.approx(getattr(factors, name), rel=1e-6)
    tried = np.mean(np.diag(layer.gram)) * np.array(RELATIVE_REGULARISERS)
    assert tried[np.argmin([likelihood(value) for value in tried])] == pytest.approx(layer.regulariser, rel=1e-12)
    predicted = np.concatenate([np.ravel(p["forces_uncertainty"]) for p in results])
    assert np.mean((errors["forces"] / predicted) ** 2) == pytest.approx(1, rel=1e-9)


def test_a_model_file_keeps_uncertainties(calibrated, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    path = save_potential(calibrated, tmp_path / "model.safetensors")
    loaded = load_potential(path)
    np.testing.assert_array_equal(loaded.last_layer.gram, calibrated.last_layer.gram)
    assert loaded.calibration == calibrated.calibration
    asked = ("energy_uncertainty", "forces_uncertainty")
    frame = molecules(1, seed=8)[0]
    for name, value in loaded.predict(frame, asked).items():
        np.testing.assert_array_equal(value, calibrated.predict(frame, asked)[name])
    from safetensors.numpy import load_file

    tensors = load_file(path)
    assert "last_layer_uncertainty/gram" in tensors
    assert {name for name in tensors if not name.startswith("last_layer_uncertainty/")} == {"embedding", "readout"}


def test_the_calculator_has_them_in_its_units(calibrated):
    atoms = molecules(1, seed=8)[0].to_ase()
    atoms.calc = EquijaxCalculator(calibrated)
    expected = calibrated.predict(atoms, ("energy_uncertainty", "forces_uncertainty"))
    atoms.get_forces()
    assert "forces_uncertainty" not in atoms.calc.results  # a molecular-dynamics step does not pay for them
    assert atoms.calc.results["energy_uncertainty"] == pytest.approx(expected["energy_uncertainty"], rel=1e-10)
    found = atoms.calc.get_property("forces_uncertainty", atoms)
    np.testing.assert_allclose(found, expected["forces_uncertainty"], rtol=1e-10)


def test_models_without_uncertainties_name_the_command(potential):
    frame = molecules(1)[0]
    with pytest.raises(EquijaxError, match="no uncertainties; fix: `equijax calibrate MODEL --train FILES"):
        potential.predict(frame, ("forces_uncertainty",))
    atoms = frame.to_ase()
    atoms.calc = EquijaxCalculator(potential)
    with pytest.raises(PropertyNotImplementedError, match="equijax calibrate"):
        atoms.calc.get_property("energy_uncertainty", atoms)
    assert not any("uncertainty" in part for part in evaluate(potential, molecules(2)).metrics.values() if part != 2)


def test_what_cannot_be_calibrated_is_refused(potential):
    frames = molecules(2)
    unlabelled = [Structure(s.atomic_numbers, s.positions, labels={"dipole": np.zeros(3)}) for s in frames]
    assert not has_label(unlabelled[0], "energy")
    with pytest.raises(EquijaxError, match="no frame has a label of energy, forces"):
        with_last_layer(potential, frames, unlabelled)
    committee = dataclasses.replace(
        potential, params={k: np.stack([v, v]) for k, v in potential.params.items()}, committee=2
    )
    with pytest.raises(EquijaxError, match="this is a committee"):
        with_last_layer(committee, frames, frames)
    with pytest.raises(EquijaxError, match="matrix is for 3 features; this model has 4"):
        dataclasses.replace(potential, last_layer=LastLayer(np.eye(3), 1.0), calibration=Calibration(1.0, 1.0, 1.0))
    with pytest.raises(EquijaxError, match=r"regulariser is 0\.0; expected a positive number"):
        LastLayer(np.eye(3), 0.0)


def test_only_invariants_are_last_layer_features():
    for name, config in MODELS.items():
        columns = feature_columns(config())
        assert len(columns) == len(set(columns.tolist())), name
    columns = feature_columns(MODELS["mace"](hidden_irreps="2x0e+2x1o", num_layers=2))
    np.testing.assert_array_equal(columns, [0, 1, 8, 9])


def test_statistics_of_gaussian_errors():
    rng = np.random.default_rng(1)
    sigmas = rng.uniform(0.5, 3.0, 20_000)
    errors = sigmas * rng.normal(size=20_000)
    right = quality(errors, sigmas)
    assert right["coverage_1sigma"] == pytest.approx(0.6827, abs=0.01)
    assert right["coverage_2sigma"] == pytest.approx(0.9545, abs=0.005)
    assert right["miscalibration_area"] < 0.01
    assert factor(errors, 0.5 * sigmas) == pytest.approx(2, rel=0.02)
    assert quality(errors, 2 * sigmas)["nll"] > right["nll"] < quality(errors, 0.5 * sigmas)["nll"]
    assert quality(errors, 1e6 * sigmas)["miscalibration_area"] == pytest.approx(0.5, abs=0.01)
    expected, observed = calibration_curve(errors, 1e-6 * sigmas)
    assert (expected[[0, -1]] == [0, 1]).all()
    assert observed[-2] < 0.01
    assert quality(np.array([1.0, 3.0]), np.array([0.0, 1.0]))["n"] == 1  # σ = 0 is left out


def test_rank_correlation_with_ties():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
