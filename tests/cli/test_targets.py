"""Commands with a model of tensor targets: predictions that read back as labels, and averages."""

from __future__ import annotations

import json

import ase.io
import jax
import numpy as np
import pytest

from equijax.cli import main as cli
from equijax.datasets import read_structures
from equijax.models import ModelStatistics, TensorNetConfig
from equijax.models.target_labels import target_readers
from equijax.models.targets import TargetConfig, unit_statistics, with_targets
from equijax.potential.potential import Potential, parameter_shapes
from equijax.weights import load_potential, save_potential
from tests.contracts.structures import methanol, random_rotation, transformed

TARGETS = {
    "dipole": TargetConfig(tensor="i", form="charges_and_dipoles", unit="e Å"),
    "quadrupole": TargetConfig(tensor="ij=ji", traceless=True, unit="e Å^2"),
}


def write_model(path, *names):
    """TensorNet with random weights in float64, of these targets alone."""
    targets = {name: TARGETS[name] for name in names}
    config = TensorNetConfig(cutoff=3.0, channels=4, num_layers=1, num_radial=4)
    statistics = ModelStatistics((1, 6, 8), 4.0)
    numbers = {name: unit_statistics(target, (1, 6, 8)) for name, target in targets.items()}
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(with_targets(config, targets, numbers, statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * max(1, *leaf.shape[:1]) ** -0.5, shapes)
    potential = Potential(
        config,
        statistics,
        dict.fromkeys((1, 6, 8), 0.0),
        params,
        dtype="float64",
        targets=targets,
        target_statistics=numbers,
        trained=names,
    )
    return save_potential(potential, path / "model.safetensors")


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    """A rigid methanol that tumbles."""
    path = tmp_path_factory.mktemp("targets") / "trajectory.xyz"
    ase.io.write(path, [transformed(methanol(), random_rotation(seed)).to_ase() for seed in range(8)])
    return path


def test_average_of_a_rigid_molecule_is_its_tensor(trajectory, tmp_path, capsys):
    output = tmp_path / "average.json"
    words = ["average", str(write_model(tmp_path, "quadrupole")), str(trajectory), "--blocks", "4"]
    assert cli.run([*words, "--target", "quadrupole", "--json", str(output)]) == 0
    text = capsys.readouterr().out
    assert "quadrupole: 8 frames laid onto the first; rmsd 0.000 Å on average" in text
    assert "principal values e Å^2 and axes:" in text
    found = json.loads(output.read_text())
    mean = np.array(found["mean"])
    # Positions in the file have eight decimals.
    assert np.abs(found["error"]).max() < 1e-6 * np.abs(mean).max()
    assert np.abs(found["unaligned"]).max() < 0.9 * np.abs(mean).max()
    np.testing.assert_allclose(found["principal_values"], np.linalg.eigvalsh(mean), atol=1e-12)
    assert abs(found["zero_field"]["D"]) == pytest.approx(1.5 * np.abs(found["principal_values"]).max())
    assert cli.run([*words, "--target", "quadrupol"]) == 2
    assert "known: quadrupole" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_read_back_as_labels(trajectory, tmp_path):
    model = write_model(tmp_path, *TARGETS)
    output = tmp_path / "out.xyz"
    assert cli.run(["predict", str(model), str(trajectory), "--output", str(output), "--born-charges"]) == 0
    frames = read_structures(output, targets=target_readers(TARGETS))
    images = ase.io.read(output, index=":")
    (first, *_) = load_potential(model).predict(images, ("dipole", "quadrupole", "born_charges"))
    assert len(frames) == 8
    assert set(frames[0].labels) == {"dipole", "quadrupole"}
    quadrupole = TARGETS["quadrupole"].cartesian.to_cartesian(frames[0].labels["quadrupole"])
    np.testing.assert_allclose(quadrupole, first["quadrupole"], atol=1e-6)
    np.testing.assert_allclose(frames[0].labels["dipole"], first["dipole"], atol=1e-6)
    np.testing.assert_allclose(images[0].arrays["born_charges"], first["born_charges"].reshape(-1, 9), atol=1e-6)
