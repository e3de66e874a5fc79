"""The data files under data/ethanol: readable, consistent with their card, physically plausible."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
ETHANOL = DATA / "ethanol"
CARD = json.loads((ETHANOL / "card.json").read_text(encoding="utf-8"))
SPLITS = ("train", "valid", "test_300K", "test_600K", "test_1200K")


@pytest.fixture(scope="module")
def frames():
    return {name: ase.io.read(ETHANOL / f"{name}.xyz", ":") for name in SPLITS}


@pytest.fixture(scope="module")
def atom_energies():
    atoms = ase.io.read(ETHANOL / "isolated_atoms.xyz", ":")
    assert all(len(a) == 1 and a.info["config_type"] == "IsolatedAtom" for a in atoms)
    return {a.get_chemical_symbols()[0]: a.get_potential_energy() for a in atoms}


@pytest.fixture(scope="module")
def generator():
    """The generator script as a module; the heavy imports are inside its functions."""
    before = set(sys.modules)
    module_spec = importlib.util.spec_from_file_location("generate_ethanol", DATA / "generate_ethanol.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert not {"pyscf", "tblite"} & (set(sys.modules) - before)
    return module


@pytest.mark.parametrize("name", SPLITS)
def test_labels_are_complete_and_finite(frames, name):
    temperature = f"{CARD['splits'][name]['temperature_k']}K"
    numbers = [atoms.info["frame"] for atoms in frames[name]]
    assert numbers == sorted(set(numbers))
    for atoms in frames[name]:
        assert sorted(atoms.symbols) == sorted("CCOHHHHHH")
        assert atoms.info["config_type"] == temperature
        assert not atoms.pbc.any()
        assert not atoms.cell.any()
        for values, shape in (
            (atoms.positions, (9, 3)),
            (atoms.get_forces(), (9, 3)),
            (atoms.get_dipole_moment(), (3,)),
            (atoms.get_potential_energy(), ()),
        ):
            assert np.shape(values) == shape
            assert np.isfinite(values).all()


@pytest.mark.parametrize("name", SPLITS)
def test_no_net_force_and_centred(frames, name):
    for atoms in frames[name]:
        np.testing.assert_allclose(atoms.get_forces().sum(0), 0, atol=1e-3)
        np.testing.assert_allclose(atoms.get_center_of_mass(), 0, atol=1e-6)


@pytest.mark.parametrize("name", SPLITS)
def test_energies_are_plausible_atomization_energies(frames, atom_energies, name):
    for atoms in frames[name]:
        binding = atoms.get_potential_energy() - sum(atom_energies[s] for s in atoms.symbols)
        assert -40 < binding < -25


def test_every_element_has_an_isolated_atom(frames, atom_energies):
    assert set(atom_energies) == {s for split in frames.values() for a in split for s in a.symbols}
    assert atom_energies == pytest.approx(CARD["isolated_atoms_ev"], abs=1e-7)


def test_splits_are_disjoint(frames):
    """No geometry twice: neither its coordinates nor, whatever the orientation, its distances."""
    hashes, distances = [], []
    for atoms in (a for split in frames.values() for a in split):
        hashes.append(hashlib.sha256(np.round(atoms.positions, 5).tobytes()).hexdigest())
        distances.append(tuple(np.round(np.sort(atoms.get_all_distances().ravel()), 4)))
    assert len(set(hashes)) == len(hashes)
    assert len(set(distances)) == len(distances)


@pytest.mark.parametrize("name", SPLITS)
def test_card_describes_the_file(frames, name):
    row = CARD["splits"][name]
    assert hashlib.sha256((ETHANOL / f"{name}.xyz").read_bytes()).hexdigest() == row["sha256"]
    energies = np.array([a.get_potential_energy() for a in frames[name]])
    forces = np.array([a.get_forces() for a in frames[name]])
    assert len(energies) == row["frames"] <= row["planned_frames"]
    assert energies.mean() == pytest.approx(row["energy_mean_ev"], abs=1e-5)
    assert energies.std() == pytest.approx(row["energy_std_ev"], abs=1e-5)
    assert np.sqrt((forces**2).mean()) == pytest.approx(row["force_rms_ev_per_angstrom"], abs=1e-5)


def test_readme_quotes_the_card():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(\w+)\.xyz` \|[^|]*\|[^|]*\| (\d+) of (\d+) \|", text, re.MULTILINE)
    shipped = [(name, row["frames"], row["planned_frames"]) for name, row in CARD["splits"].items()]
    assert [(name, int(frames), int(planned)) for name, frames, planned in quoted] == shipped


def test_job_list_covers_everything_once_and_starts_with_the_lite_subset(generator):
    jobs = generator.job_list()
    assert len(set(jobs)) == len(jobs) == sum(s.full for s in generator.SPLITS)
    lite = sum(s.lite for s in generator.SPLITS)
    assert set(jobs[:lite]) == {(s.name, i) for s in generator.SPLITS for i in range(s.lite)}
    for split in generator.SPLITS:  # frames come in order, so that what is done forms a prefix
        own = [i for name, i in jobs if name == split.name]
        assert own == list(range(split.full))


def test_job_file_drops_only_a_truncated_last_line(generator, tmp_path):
    path = tmp_path / "labels.jsonl"
    assert generator.read_labels(path) == ({}, 0)
    records = [{"split": "train", "frame": i, "energy": -1.5 * i} for i in range(3)]
    lines = [json.dumps(r).encode() + b"\n" for r in records]
    path.write_bytes(b"".join(lines))
    expected = {("train", i): record for i, record in enumerate(records)}
    assert generator.read_labels(path) == (expected, len(b"".join(lines)))

    del expected["train", 2]
    for kept in range(len(lines[2])):
        path.write_bytes(lines[0] + lines[1] + lines[2][:kept])
        assert generator.read_labels(path) == (expected, len(lines[0] + lines[1]))

    path.write_bytes(lines[0] + lines[1][:10] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="damaged"):
        generator.read_labels(path)


def test_only_the_contiguous_converged_prefix_is_written(generator, tmp_path):
    """Frame 1 did not converge, frame 3 is missing: the file holds frames 0 and 2."""
    split, positions = generator.SPLITS[0], np.arange(30.0).reshape(5, 2, 3)
    np.savez(tmp_path / "frames_train.npz", numbers=np.array([8, 1]), positions=positions)
    labels = {"energy": -7.0, "forces": np.ones((2, 3)).tolist(), "dipole": [0.0, 0.5, 1.0], "cpu_s": 1.0}
    records = {}
    for i in (0, 1, 2, 4):
        record = {"split": "train", "frame": i, "digest": generator.digest(positions[i]), "converged": i != 1}
        records["train", i] = record | (labels if i != 1 else {"cpu_s": 1.0})
    row = generator.write_split(tmp_path, tmp_path, split, records, {"O": -4.0, "H": -1.0})
    assert (row["frames"], row["scf_failures"]) == (2, 1)
    written = ase.io.read(tmp_path / "train.xyz", ":")
    assert [a.info["frame"] for a in written] == [0, 2]
    np.testing.assert_allclose(written[1].positions, positions[2])
    np.testing.assert_allclose(written[1].get_dipole_moment(), labels["dipole"])

    records["train", 0]["digest"] = "another geometry"
    with pytest.raises(RuntimeError, match="other geometries"):
        generator.write_split(tmp_path, tmp_path, split, records, {"O": -4.0, "H": -1.0})
