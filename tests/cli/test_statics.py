"""`equijax relax`, `hessian`, `phonons` and `elastic` from the command line."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

import equijax
from equijax.cli import main as cli
from equijax.weights import save_potential
from tests.statics.pair_model import PairConfig, pair_potential

POTENTIAL = pair_potential(0.8, kind="morse", cutoff=4.8, length=3.0)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model file, loaded as the one potential that keeps its compiled programs from command to command."""
    monkeypatch.setitem(equijax.MODELS, "pair", PairConfig)
    path = save_potential(POTENTIAL, tmp_path / "model.safetensors")
    assert equijax.load(path).model_config == POTENTIAL.model_config
    monkeypatch.setattr("equijax.weights.load", lambda _: POTENTIAL, raising=False)
    return str(path)


def test_relax_writes_what_it_found_and_says_what_is_not_at_rest(model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [Atoms(f"Ar{n}", positions=rng.normal(size=(n, 3)) * 2.5) for n in (2, 4, 5)]
    images[0].positions = [[0, 0, 0], [5.0, 0, 0]]  # beyond the cutoff: at rest
    images[1].set_constraint(FixAtoms([0]))
    images[1].info = {"name": "four", "energy": 99.0}
    source, target = tmp_path / "in.xyz", tmp_path / "out.xyz"
    ase.io.write(source, images)
    assert cli.run(["relax", model, str(source), "--output", str(target), "--fmax", "0.001"]) == 0
    assert "3 of 3 converged" in capsys.readouterr().out
    relaxed = ase.io.read(target, ":")
    for atoms in relaxed:
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e-3
        assert atoms.info["relaxation"] == "converged"
        assert atoms.get_potential_energy() <= 0
    assert relaxed[1].info["name"] == "four"
    np.testing.assert_allclose(relaxed[1].positions[0], images[1].positions[0], atol=1e-7)
    assert cli.run(["relax", model, str(source), "--output", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err

    assert cli.run(["relax", model, str(source), f"--output={target}", "--overwrite", "--max-steps=1", "--quiet"]) == 3
    assert "2 structures are not at rest" in capsys.readouterr().err
    assert [atoms.info["relaxation"] for atoms in ase.io.read(target, ":")][:2] == ["converged", "not converged"]
    assert cli.run(["relax", model, str(source), f"--output={tmp_path}/x.xyz", "--cell", "full"]) == 2
    assert "in.xyz frame 0 has no cell that could relax" in capsys.readouterr().err


def test_hessian(model, tmp_path, capsys):
    start, rest = tmp_path / "start.xyz", tmp_path / "rest.xyz"
    ase.io.write(start, Atoms("Ar3", positions=[[0, 0, 0], [3, 0, 0], [1.5, 2.6, 0]]))
    assert cli.run(["relax", model, str(start), "--output", str(rest), "--fmax", "1e-7", "--quiet"]) == 0
    options = [f"--output={tmp_path}/h.npz", f"--modes={tmp_path}/modes.xyz", "--frequencies", "--temperature=300"]
    assert cli.run(["hessian", model, str(rest), *options]) == 0
    text = capsys.readouterr().out
    assert "3 modes, 0 imaginary; 6 translations and rotations" in text
    assert "free energy of the vibrations" in text
    with np.load(tmp_path / "h.npz") as arrays:
        np.testing.assert_allclose(arrays["hessian"], arrays["hessian"].T, atol=1e-12)
        assert arrays["wavenumbers"].shape == (3,)
        lowest = arrays["wavenumbers"][0]
    assert len(ase.io.read(tmp_path / "modes.xyz", ":")) == 3 * 16
    assert cli.run(["hessian", model, str(rest), "--lowest", "1"]) == 0
    assert f"{lowest:9.2f}" in capsys.readouterr().out
    assert cli.run(["hessian", model, str(rest), f"--output={tmp_path}/h.npz"]) == 2


def test_elastic_and_phonons(model, tmp_path, capsys):
    crystal, rest = tmp_path / "fcc.xyz", tmp_path / "rest.xyz"
    ase.io.write(crystal, bulk("Ar", "fcc", a=4.2))
    constants = tmp_path / "elastic.json"
    assert cli.run(["relax", model, str(crystal), f"--output={rest}", "--cell=full", "--smax=1e-3", "--quiet"]) == 0
    assert cli.run(["elastic", model, str(rest), "--relax=none", "--output", str(constants)]) == 0
    assert "bulk hill" in capsys.readouterr().out
    record = json.loads(constants.read_text())
    assert record["is_stable"]
    c = np.array(record["relaxed_gpa"])
    np.testing.assert_allclose(c, c.T, atol=1e-8)
    assert np.abs(record["stress_gpa"]).max() < 0.011

    output = tmp_path / "phonons.npz"
    words = ["phonons", model, str(rest), f"--output={output}", "--supercell", "3", "3", "3", "--grid", "4", "4", "4"]
    assert cli.run([*words, "--points=40"]) == 0
    assert "acoustic sum rule broken by" in capsys.readouterr().out
    with np.load(output) as arrays:
        assert arrays["bands"].shape == (40, 3)
        assert arrays["bands"].min() > -1e-6
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert cli.run([*words, "--overwrite", "--path=XYZZY"]) == 2
