"""npz, HDF5 and ASE databases: layouts, round trips, refusals."""

import zipfile

import ase.db
import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from equijax.datasets.arrays import write_hdf5, write_npz
from equijax.datasets.readers import read_frames, read_structures
from equijax.errors import EquijaxError
from tests.datasets.frames import crystals, waters

EV = {"energy": "eV"}


def same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.atomic_numbers, b.atomic_numbers)
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.cell, b.cell)
        assert a.pbc == b.pbc
        assert set(a.labels) == set(b.labels)
        for label in a.labels:
            np.testing.assert_array_equal(a.labels[label], b.labels[label])


@pytest.mark.parametrize(("name", "write"), [("a.npz", write_npz), ("a.h5", write_hdf5), ("a.hdf5", write_hdf5)])
def test_round_trip_of_mixed_structures(tmp_path, name, write):
    structures = [*waters(3), *crystals(2)]
    write(tmp_path / name, structures)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    same(structures, read_structures(tmp_path / name, units=EV, labels="required"))


def test_dense_layout_as_in_rmd17(tmp_path):
    rng = np.random.default_rng(0)
    coords, forces = rng.normal(size=(5, 3, 3)), rng.normal(size=(5, 3, 3))
    energies = rng.normal(size=5)
    np.savez(tmp_path / "a.npz", nuclear_charges=np.array([8, 1, 1]), coords=coords, energies=energies, forces=forces,
             old_indices=np.arange(5))  # fmt: skip
    kcal = 0.0433641042
    structures = read_structures(tmp_path / "a.npz", keys={"energy": "energies"}, units={"energy": "kcal/mol"})
    assert len(structures) == 5
    np.testing.assert_array_equal(structures[3].positions, coords[3])
    np.testing.assert_allclose(structures[3].labels["forces"], forces[3] * kcal, rtol=1e-6)
    np.testing.assert_allclose(structures[3].labels["energy"], energies[3] * kcal, rtol=1e-6)
    assert structures[3].info["old_indices"] == 3
    assert structures[3].pbc == (False, False, False)


def test_padded_elements(tmp_path):
    numbers = np.array([[8, 1, 1], [1, 1, 0]])
    positions = np.random.default_rng(0).normal(size=(2, 3, 3))
    np.savez(tmp_path / "a.npz", z=numbers, R=positions, energy=np.array([[1.0], [2.0]]), forces=positions * 2)
    structures = read_structures(tmp_path / "a.npz", units={"energy": "eV", "length": "nm"})
    assert [len(s) for s in structures] == [3, 2]
    np.testing.assert_allclose(structures[1].positions, positions[1, :2] * 10)
    np.testing.assert_allclose(structures[1].labels["forces"], positions[1, :2] * 2 / 10)
    assert structures[1].labels["energy"].shape == ()
    np.savez(tmp_path / "b.npz", z=np.array([[0, 1, 1]]), R=positions[:1], energy=np.ones(1))
    with pytest.raises(EquijaxError, match="zeros may only follow the atoms"):
        read_structures(tmp_path / "b.npz", units=EV)


def test_groups_per_molecule_as_in_spice(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, count in (("b", 2), ("a", 3)):
            group = file.create_group(name)
            group["atomic_numbers"] = np.array([8, 1, 1])
            group["conformations"] = rng.normal(size=(count, 3, 3)).astype(np.float32)
            group["dft_total_energy"] = rng.normal(size=count)
            group["dft_total_gradient"] = rng.normal(size=(count, 3, 3))
            group["subset"] = np.array([b"SPICE PubChem"], dtype=object).astype("S")
        gradient = file["b/dft_total_gradient"][1]
    structures = read_structures(
        tmp_path / "a.hdf5",
        keys={"energy": "dft_total_energy", "forces": "dft_total_gradient"},
        units={"energy": "Hartree", "length": "bohr"},
        forces_sign=-1,
        labels="required",
    )
    assert [s.info["group"] for s in structures] == ["/a"] * 3 + ["/b"] * 2
    assert [s.frame for s in structures] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(structures[4].labels["forces"], -gradient * 51.42206747, rtol=1e-7)


def test_hdf5_that_points_out_of_itself(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["energy"] = np.ones(1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["z"], file["R"] = np.array([1]), np.zeros((1, 1, 3))
        file["energy"] = h5py.ExternalLink("other.h5", "/energy")
    with pytest.raises(EquijaxError, match="energy is a link out of its place"):
        read_structures(tmp_path / "a.h5", units=EV)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(EquijaxError, match="no positions; expected an array called positions"):
        read_structures(tmp_path / "b.h5", units=EV)


def test_npz_with_objects_runs_nothing(tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    np.savez(tmp_path / "a.npz", z=np.array([1]), R=np.zeros((1, 1, 3)), energy=np.array([Payload()], dtype=object))
    with pytest.raises(EquijaxError, match="energy: holds Python objects, which are never loaded"):
        read_structures(tmp_path / "a.npz", units=EV)
    assert not canary.exists()


def test_npz_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("energy.npy", b"\0" * 2**24)
    with pytest.raises(EquijaxError, match=r"energy.npy is compressed more than 1000 times"):
        read_structures(tmp_path / "a.npz", units=EV)


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"z": np.array([1, 1]), "R": np.zeros((2, 3, 3))}, "do not belong together"),
        ({"z": np.array([1, 1])}, "no positions; expected an array called positions"),
        ({"R": np.zeros((2, 3, 3))}, "no elements; expected an array called atomic_numbers"),
        ({"z": np.ones(4, int), "R": np.zeros((4, 3)), "num_atoms": np.array([2, 3])}, "num_atoms adds up to 5"),
        ({"z": np.array([1, 300]), "R": np.zeros((1, 2, 3))}, "has elements 1 to 300"),
        ({"z": np.array([1, 1]), "R": np.zeros((1, 2, 2))}, "have the wrong form"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, tables, match):
    np.savez(tmp_path / "a.npz", energy=np.ones(len(tables.get("R", [1]))), **tables)
    with pytest.raises(EquijaxError, match=match):
        read_structures(tmp_path / "a.npz", units=EV)


def test_ase_database(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.db"
    expected = []
    with ase.db.connect(path) as database:
        for _ in range(3):
            atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
            atoms.rattle(0.1, rng=rng)
            atoms.calc = SinglePointCalculator(
                atoms, energy=rng.normal(), forces=rng.normal(size=(8, 3)), stress=rng.normal(size=6)
            )
            database.write(atoms, config_type="bulk", data={"dipole": [1.0, 2.0, 3.0], "born": np.ones((8, 3, 3))})
            expected.append(atoms)
    structures = read_structures(path, keys={"dipole": "dipole"}, labels="required")
    for ours, theirs in zip(structures, expected, strict=True):
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        assert float(ours.labels["energy"]) == theirs.get_potential_energy()
        np.testing.assert_array_equal(ours.labels["forces"], theirs.get_forces())
        np.testing.assert_allclose(ours.labels["stress"], theirs.get_stress(voigt=False))
        assert ours.labels["dipole"].tolist() == [1, 2, 3]
        assert ours.info["config_type"] == "bulk"
    assert next(read_frames(path)).arrays["born"].shape == (8, 3, 3)


def test_geometry_of_files_without_units_can_be_read_without_labels(tmp_path):
    write_npz(tmp_path / "a.npz", waters(2))
    structures = read_structures(tmp_path / "a.npz")
    assert not structures[0].labels
    with pytest.raises(EquijaxError, match="do not say what units"):
        read_structures(tmp_path / "a.npz", labels="required")
