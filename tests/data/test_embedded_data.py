"""The data files under data/ethanol: readable, consistent with their card, physically plausible."""

import hashlib
import json
import re
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
