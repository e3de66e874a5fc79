"""The data files under data/tensors: complete, consistent with their card, physically plausible."""

import hashlib
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

TENSORS = Path(__file__).resolve().parents[2] / "data" / "tensors"
CARD = json.loads((TENSORS / "card.json").read_text(encoding="utf-8"))
BOHR = 0.529177210903
# Norm of the dipole and isotropic polarizability in atomic units: what independent calculations at this level give.
EXPECTED = {
    "H2O": (0.75, 9.9),
    "NH3": (0.56, 13.6),
    "CH4": (0.02, 17.1),
    "HCN": (1.20, 16.3),
    "H2CO": (0.94, 17.7),
    "CH3OH": (0.68, 21.0),
    "CH3CH2OH": (None, 34.6),
}
SPLITS = {"train": 80, "valid": 10, "test_300K": 20, "test_1000K": 15}  # at least, frames of each molecule


@pytest.fixture(scope="module")
def frames():
    return {name: ase.io.read(TENSORS / f"{name}.xyz", ":") for name in (*SPLITS, "test_ethanol")}


def labels(atoms) -> dict[str, np.ndarray]:
    known = atoms.info | atoms.calc.results
    shapes = {"dipole": (3,), "polarizability": (3, 3), "quadrupole": (3, 3)}
    return {key: np.reshape(known[key], shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", [*SPLITS, "test_ethanol"])
def test_files_are_those_of_the_card(frames, name):
    row = CARD["splits"][name]
    assert hashlib.sha256((TENSORS / f"{name}.xyz").read_bytes()).hexdigest() == row["sha256"]
    assert len(frames[name]) == row["frames"]
    molecules = ["CH3CH2OH"] if name == "test_ethanol" else [m for m in EXPECTED if m != "CH3CH2OH"]
    assert list(row["molecules"]) == molecules
    for molecule, counts in row["molecules"].items():
        own = [a for a in frames[name] if a.info["molecule"] == molecule]
        assert len(own) == counts["frames"] >= SPLITS.get(name, 30)
        numbers = [a.info["frame"] for a in own]
        assert numbers == sorted(set(numbers))
        assert {a.info["config_type"] for a in own} == {f"{counts['temperature_k']}K"}
        dipoles = [np.linalg.norm(labels(a)["dipole"]) for a in own]
        assert np.mean(dipoles) == pytest.approx(counts["dipole_norm_mean"], abs=1e-5)


def test_tensors_have_their_symmetries(frames):
    for atoms in (a for split in frames.values() for a in split):
        values = labels(atoms)
        assert all(np.isfinite(v).all() for v in values.values())
        np.testing.assert_allclose(values["polarizability"], values["polarizability"].T, atol=1e-7)
        np.testing.assert_allclose(values["quadrupole"], values["quadrupole"].T, atol=1e-7)
        assert np.trace(values["quadrupole"]) == pytest.approx(0, abs=5e-8)
        assert np.linalg.eigvalsh(values["polarizability"])[0] > 0.5
        np.testing.assert_allclose(atoms.get_center_of_mass(), 0, atol=1e-6)
        assert not atoms.pbc.any()
        assert "energy" not in atoms.calc.results


@pytest.mark.parametrize("molecule", EXPECTED)
def test_sizes_are_those_of_independent_calculations(frames, molecule):
    split = "test_ethanol" if molecule == "CH3CH2OH" else "train"
    own = [labels(a) for a in frames[split] if a.info["molecule"] == molecule]
    dipole, isotropic = EXPECTED[molecule]
    assert np.mean([np.trace(v["polarizability"]) / 3 for v in own]) / BOHR**3 == pytest.approx(isotropic, rel=0.04)
    if dipole is not None:
        assert np.mean([np.linalg.norm(v["dipole"]) for v in own]) / BOHR == pytest.approx(dipole, abs=0.04)


def test_water_dipole_points_to_the_hydrogens(frames):
    """Sign: from minus to plus."""
    for atoms in (a for a in frames["train"] if a.info["molecule"] == "H2O"):
        oxygen = atoms.positions[atoms.numbers == 8][0]
        axis = atoms.positions[atoms.numbers == 1].mean(0) - oxygen
        dipole = labels(atoms)["dipole"]
        assert axis @ dipole > 0.95 * np.linalg.norm(axis) * np.linalg.norm(dipole)


def test_no_geometry_twice(frames):
    keys = [tuple(np.round(np.sort(a.get_all_distances().ravel()), 4)) for split in frames.values() for a in split]
    assert len(set(keys)) == len(keys)


def test_readme_quotes_the_card():
    text = (TENSORS.parent / "README.md").read_text(encoding="utf-8")
    for name, row in CARD["splits"].items():
        assert f"| `{name}.xyz` | {row['frames']} |" in text
    for molecule, row in CARD["splits"]["test_300K"]["molecules"].items():
        assert f"| {molecule} | {row['dipole_norm_mean']:.3f} |" in text
