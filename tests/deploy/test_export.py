"""Exported folders: the numbers of the potential without equijax, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from equijax.deploy.equijax_exported import ExportedModelError, load, neighbor_list
from equijax.deploy.export import bucket, buckets_like, export_potential
from equijax.errors import EquijaxError
from equijax.graph import neighbors as reference
from equijax.structure import Structure
from tests.toy_model import stretched, toy_potential

CELLS = {
    "triclinic, smaller than the cutoff": (np.array([[2.1, 0, 0], [0.7, 2.4, 0], [-0.6, 0.5, 2.9]]), (1, 1, 1)),
    "slab": (np.array([[3.0, 0.4, 0], [0, 3.3, 0], [0, 0, 0]]), (1, 1, 0)),
    "left-handed": (np.array([[0, 5.0, 0], [5.5, 0, 0], [1.0, 0, 6.0]]), (1, 1, 1)),
    "molecule": (np.zeros((3, 3)), (0, 0, 0)),
}


@pytest.fixture(scope="module")
def potential():
    return toy_potential(dtype="float64")


@pytest.fixture(scope="module")
def folder(potential, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    export_potential(potential, path, [bucket(7, 8), bucket(20, 44)], platforms=("cpu", "cuda"))
    return path


@pytest.mark.parametrize("case", CELLS)
def test_neighbor_list_is_that_of_equijax(case):
    cell, pbc = CELLS[case]
    positions = np.random.default_rng(3).uniform(-3.5, 3.5, (9, 3))
    structure = Structure(np.full(9, 6), positions, cell, tuple(bool(p) for p in pbc))
    wanted = reference.neighbor_list(structure, 4.0)
    found = neighbor_list(positions, cell, np.array(pbc, bool), 4.0)

    def rows(edges):
        return sorted(map(tuple, np.round(np.column_stack([edges.receivers, edges.senders, edges.vectors]), 9)))

    assert rows(found) == rows(wanted)
    assert len(wanted) > 9
    np.testing.assert_array_equal(found.vectors[found.reverse], -found.vectors)


def frames():
    crystal = bulk("C", "diamond", a=3.9) * (1, 1, 2)
    crystal.rattle(0.1, seed=1)
    return [stretched("H2O"), stretched("C2H6"), crystal, molecule("O")]


def test_loaded_without_equijax_gives_the_numbers_of_the_potential(potential, folder, tmp_path):
    """In a process that cannot import equijax, flax, ase or safetensors."""
    atoms = frames()
    wanted = [potential.predict(a, ("energy", "forces", *(("stress",) if a.pbc.all() else ()))) for a in atoms]
    inputs = [
        {
            "numbers": a.numbers.tolist(),
            "positions": a.positions.tolist(),
            "cell": a.cell.tolist(),
            "pbc": a.pbc.tolist(),
        }
        for a in atoms
    ]
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    script = """
import sys, json
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("equijax", "flax", "ase", "safetensors", "flatbuffers", "e3nn_jax", "vesin"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
from equijax_exported import load
model = load(sys.argv[1])
out = [model(f["numbers"], f["positions"], f["cell"], f["pbc"]) for f in json.load(open(sys.argv[2]))]
print(json.dumps([{k: v if isinstance(v, float) else v.tolist() for k, v in o.items()} for o in out]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "inputs.json")],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for got, expected in zip(json.loads(done.stdout), wanted, strict=True):
        assert ("stress" in got) == ("stress" in expected)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-10)


def test_manifest_says_what_is_needed(potential, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda"]
    assert manifest["atomic_numbers"] == list(potential.elements)
    assert manifest["units"] == {"energy": "eV", "length": "angstrom"}
    assert [b["rows"] for b in manifest["buckets"]] == [8, 24]
    assert np.abs(manifest["test"]["expected"]["stress"]).max() > 1e-6


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_damage_is_found(folder, tmp_path):
    changed = copied(folder, tmp_path)
    program = next(changed.glob("*.stablehlo"))
    program.write_bytes(program.read_bytes()[:-1] + b"x")
    parameters = changed / "parameters.safetensors"
    data = bytearray(parameters.read_bytes())
    data[-1] ^= 1
    parameters.write_bytes(bytes(data))
    with pytest.raises(ExportedModelError, match=r"parameters\.safetensors: the checksum does not match"):
        load(changed)


def test_a_program_that_computes_something_else_fails_its_test(folder, tmp_path):
    changed = copied(folder, tmp_path)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["test"]["expected"]["forces"][0][0] += 1e-5
    (changed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportedModelError, match="the test gives a wrong forces: off by"):
        load(changed)


@pytest.mark.parametrize(
    ("numbers", "positions", "message"),
    [
        ([1] * 30, np.arange(90.0).reshape(30, 3), r"more than any bucket holds \(7 x 8, 23 x 44\).*--buckets 30x"),
        ([79], np.zeros((1, 3)), r"\[79\] are unknown to the model; known: \[1, 6, 8\]"),
        ([1, 1], np.zeros((2, 3)), "atoms 0 and 1 are at the same place"),
        ([1], np.full((1, 3), np.nan), "not finite"),
    ],
)
def test_what_a_model_cannot_take(folder, numbers, positions, message):
    with pytest.raises(ExportedModelError, match=message):
        load(folder, check=False)(numbers, positions)


def test_buckets_hold_the_structures_with_room_for_motion(potential):
    structures = [Structure.from_ase(atoms) for atoms in frames()]
    found = buckets_like(potential, structures)
    degrees = [reference.neighbor_list(s, 4.0).receivers for s in structures]
    largest = max(np.bincount(d).max() for d in degrees if len(d))
    assert 1 <= len(found) <= 4
    assert max(b.neighbors for b in found) >= 1.1 * largest
    assert max(b.nodes for b in found) > max(len(s) for s in structures)


def test_what_is_not_exported(potential, folder):
    with pytest.raises(EquijaxError, match="exists already"):
        export_potential(potential, folder, [bucket(2, 2)])
    with pytest.raises(EquijaxError, match="--platforms: is gpu"):
        export_potential(potential, folder.with_name("other"), [bucket(2, 2)], platforms=("gpu",))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.slow
def test_fresh_environment_with_jax_and_numpy_alone(folder, tmp_path):
    """Needs a package index; the loader is run as the folder holds it."""
    import jax

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", f"jax=={jax.__version__}", "numpy"], capture_output=True, check=False
    )
    if installed.returncode:
        pytest.skip("no package index")
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    done = subprocess.run(
        [python, folder / "equijax_exported.py"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the test is repeated" in done.stdout
