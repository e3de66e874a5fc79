"""Bad input, dataset part: every case ends in the right error, warning or count, never in wrong numbers."""

import dataclasses
import gzip
import itertools
import re
import warnings

import numpy as np
import pytest
from ase.build import bulk, fcc111

from equijax.datasets import DatasetConfig, load_dataset, read_structures, training_statistics
from equijax.datasets.arrays import write_npz
from equijax.datasets.audit import audit_dataset
from equijax.datasets.extxyz import write_extxyz
from equijax.datasets.files import check_fingerprints
from equijax.datasets.load import max_force
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.batching import BatchBudget, plan_batches, structure_graph
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure
from tests.datasets.frames import crystals, isolated_atoms, water_frame, waters

E0 = {"H": -13.6, "O": -2041.0}


@pytest.fixture
def load(tmp_path):
    """Write text (or bytes) as train.xyz, split or with a valid file, and load it."""

    def run(train, valid=None, name="train.xyz", **settings):
        path = tmp_path / name
        path.write_bytes(train if isinstance(train, bytes) else train.encode())
        config = {"train": path, "valid": {"count": 1}, "atomic_energies": E0, **settings}
        if valid is not None:
            (tmp_path / "valid.xyz").write_text(valid)
            config["valid"] = tmp_path / "valid.xyz"
        return load_dataset(DatasetConfig.model_validate(config))

    return run


def frames(count, **kwargs):
    """Text of `count` different water frames that look plausible."""
    rng = np.random.default_rng(1)
    text = ""
    for i in range(count):
        energy = kwargs.get("energy", f"{-2078 - 0.01 * i:.4f}")
        force = kwargs.get("forces", " ".join(f"{x:.3f}" for x in rng.normal(size=3)))
        text += water_frame(**{**kwargs, "energy": energy, "forces": force}).replace(
            "0.119", f"{0.119 + 0.001 * i:.4f}"
        )
    return text


def refused(load, *args, match, **kwargs):
    with pytest.raises(EquijaxError, match=match) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["Energy", "REF_energy", "free_energy", "dft_energy"])
def test_a1_label_under_another_name(load, name):
    text = frames(4).replace("energy=", f"{name}=")
    message = refused(load, text, match=rf"energy: no frame has 'energy'.*did you mean '{name}'\?")
    assert f"keys: {{energy: {name}}}" in message
    assert "per frame" in message
    assert "per atom: forces" in message
    dataset = load(text, keys={"energy": name})
    assert float(dataset.train[0].labels["energy"]) < -2000
    assert "energy" not in load(text, keys={"energy": None}).train[0].labels


def test_a1_wrong_name_given(load):
    message = refused(load, frames(4), keys={"energy": "REF_energy"}, match="keys.energy: no frame has 'REF_energy'")
    assert "did you mean 'energy'?" in message
    with pytest.raises(ValueError, match="'force' is not a label; did you mean 'forces'"):
        DatasetConfig(train="a.xyz", keys={"force": "f"})


def test_a1_no_labels_at_all(load):
    text = frames(4).replace("energy=", "weight=").replace(":forces:", ":velo:")
    refused(load, text, match="no labels; expected energy or forces; found per frame: weight; per atom: velo")


def test_a2_label_in_some_frames(load):
    text = frames(3) + water_frame(comment='Properties=species:S:1:pos:R:3:forces:R:3 note=x pbc="F F F"')
    dataset = load(text, valid=frames(1).replace("0.119", "0.13"))
    assert dataset.coverage()["train"] == {"energy": 3, "forces": 4}
    assert "energy 3/4" in dataset.summary
    refused(load, text, valid=frames(1), require="all", match=r"frame 3: energy: missing, and require is all")


def test_a2_second_file_under_another_name(tmp_path):
    (tmp_path / "a.xyz").write_text(frames(3))
    (tmp_path / "b.xyz").write_text(frames(3).replace("energy=", "REF_energy=").replace("0.119", "0.14"))
    config = DatasetConfig(train=(tmp_path / "a.xyz", tmp_path / "b.xyz"), atomic_energies=E0)
    with pytest.raises(EquijaxError, match=r"b\.xyz: energy: no frame has 'energy'.*did you mean 'REF_energy'"):
        load_dataset(config)


def test_a3_force_column(load):
    text = frames(4).replace(":forces:R:3", ":force:R:3")
    message = refused(load, text, match=r"forces: no frame has 'forces'.*did you mean 'force'\?")
    assert "keys: {forces: force}" in message
    assert load(text, keys={"forces": "force"}).train[0].labels["forces"].shape == (3, 3)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a4_energy_is_not_finite(load, value, tmp_path):
    text = frames(3) + water_frame(energy=value, extra="config_type=bad")
    refused(load, text, match=rf"train.xyz frame 3 \(config_type=bad\): energy: is {value}; expected a number")
    dataset = load(text, on_bad_frame="skip")
    assert len(dataset.train) + len(dataset.valid) == 3
    assert [bad.frame for bad in dataset.skipped] == [3]
    load_dataset(
        DatasetConfig(train=tmp_path / "train.xyz", atomic_energies=E0, on_bad_frame="skip"),
        skipped_csv=tmp_path / "run" / "skipped.csv",
    )
    table = (tmp_path / "run" / "skipped.csv").read_text().splitlines()
    assert table[0] == "file,frame,reason"
    assert ",3," in table[1]
    assert "energy: is" in table[1]


def test_a4_one_force_is_not_finite(load):
    bad = water_frame(forces="0 0 0").replace("-0.763 -0.477 0 0 0", "-0.763 -0.477 0 nan 0")
    refused(load, frames(2) + bad, match=r"train.xyz frame 2: forces: atom 2: is not finite: \[0.0, nan, 0.0\]")
    bad = water_frame().replace("-0.763", "inf")
    refused(load, frames(2) + bad, match="frame 2: positions: atom 2 position is not finite")


def test_a5_energy_is_text(load):
    refused(load, frames(2) + water_frame(energy="abc"), match="frame 2: energy: 'abc' is text; expected a number")
    refused(load, frames(2) + water_frame(energy="T"), match="frame 2: energy: 'True' is not a number")
    refused(load, frames(2) + water_frame(energy='"1 2"'), match=r"frame 2: energy: has shape \[2\]; expected a number")
    dataset = load(frames(3, energy="-2.078D+03"))
    assert float(dataset.train[0].labels["energy"]) == -2078.0


def test_a6_truncated_last_frame(load):
    whole = frames(3)
    offset = len(frames(2).encode())
    for cut in (1, 2):
        text = "\n".join(whole.splitlines()[:-cut]) + "\n"
        message = refused(load, text, match=rf"train.xyz frame 2: the file ends after {3 - cut} of 3 atoms")
        assert f"starts at byte {offset}" in message
        assert "allow_truncated: true" in message
        dataset = load(text, allow_truncated=True)
        assert len(dataset.train) + len(dataset.valid) == 2
    half_line = whole[: whole.rindex(" ") - 8]
    refused(load, half_line, match="frame 2: line 15 has")
    dataset = load(half_line, allow_truncated=True)
    assert len(dataset.train) + len(dataset.valid) == 2


def test_a6_truncated_gzip(load):
    data = gzip.compress(frames(5).encode())
    refused(load, data[: len(data) // 2], name="train.xyz.gz", match=r"train\.xyz\.gz: broken gzip file")


def test_a7_short_line(load):
    text = frames(2) + water_frame(forces="0 0")
    refused(load, text, match=r"frame 2: line 13 has 6 columns; expected 7 \(species:S:1:pos:R:3:forces:R:3\)")
    refused(load, frames(2) + water_frame(forces="0 0 0 0"), match="frame 2: line 13 has 8 columns; expected 7")
    refused(load, frames(2) + water_frame(forces="0 0 x"), match="frame 2: forces: line 13: 'x' is not a number")
    refused(load, frames(2) + water_frame(count="2"), match="frame 3: line 15 is 'H .*expected the number of atoms")


@pytest.mark.parametrize("text", ["", "\n\n", "   \n"])
def test_a8_no_frames(load, text):
    refused(load, text, match=r"train.xyz: no frames")


def test_a9_frame_without_atoms(load):
    refused(load, frames(2) + "0\nenergy=0\n", match="frame 2: line 11 declares 0 atoms; expected at least one")
    refused(load, frames(2) + "-3\nenergy=0\n", match="frame 2: line 11 declares -3 atoms")


@pytest.mark.parametrize("element", ["Xx", "X", "0", "Q"])
def test_a10_no_element(load, element):
    text = frames(2) + water_frame(element=element)
    refused(load, text, match=rf"frame 2: species: line 13: atom 0 is '{element}'; expected a chemical element")


def test_a11_line_endings_tabs_mark_and_gzip(load):
    good = frames(3)
    expected = load(good).train[0].positions
    for data, name in (
        (good.replace("\n", "\r\n").encode(), "train.xyz"),
        (good.replace(" ", "\t").encode(), "train.xyz"),
        (b"\xef\xbb\xbf" + good.encode(), "train.xyz"),
        (gzip.compress(good.encode()), "train.xyz.gz"),
    ):
        np.testing.assert_array_equal(load(data, name=name).train[0].positions, expected)


@pytest.mark.parametrize(
    ("data", "name", "match"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "train.xyz", "is an HDF5 file; expected extended XYZ text"),
        (bytes(range(256)) * 8, "train.xyz", "is binary data; expected extended XYZ text"),
        (b"\x80\x04\x95" + b"\0" * 64, "train.xyz", "is a pickle; expected extended XYZ text"),
        (b"\x80\x04\x95" + b"\0" * 64, "train.npz", "is a pickle; expected a zip archive"),
        (b"\x80\x04\x95" + b"\0" * 64, "train.db", "is a pickle; expected an SQLite database"),
        (b"\x80\x04\x95" + b"\0" * 64, "train.h5", "is a pickle; expected an HDF5 file"),
        (b"\x80\x04\x95" + b"\0" * 64, "train.pkl", r"not read \(a pickle\); expected one of .xyz"),
        (b"hello", "train.txt", "files of this kind are not read; expected one of .xyz"),
        (b"hello", "train.xyz", "line 1 is 'hello'; expected the number of atoms"),
        (b"hello", "train.xyz.gz", "is not gzip data; expected gzip data"),
        (gzip.compress(b"3\n", mtime=0), "train.xyz", "is gzip data; expected extended XYZ text"),
        (b"PK\x03\x04" + b"\0" * 64, "train.npz", "broken npz file"),
        (b"SQLite format 3\0" + b"\0" * 200, "train.db", "broken database"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "train.h5", "broken HDF5 file"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else value,
)
def test_a12_binary_junk_and_wrong_extensions(load, data, name, match):
    message = refused(load, data, name=name, units={}, match=match)
    assert name in message


def test_a12_missing_file(tmp_path):
    (tmp_path / "trian.xyz").write_text(frames(2))
    with pytest.raises(EquijaxError, match=r"train.xyz: dataset.train: no such file; did you mean 'trian.xyz'\?"):
        load_dataset(DatasetConfig(train=tmp_path / "train.xyz"))
    with pytest.raises(EquijaxError, match="is a directory"):
        load_dataset(DatasetConfig(train=tmp_path))


def crystal_text(stress="stress", value=None):
    text = ""
    for crystal in crystals(4):
        tensor = crystal.labels["stress"] if value is None else value(crystal)
        numbers = " ".join(f"{x:.12g}" for x in np.ravel(tensor))
        rows = "\n".join(
            f"{'Na' if z == 11 else 'Cl'} {p[0]:.8f} {p[1]:.8f} {p[2]:.8f} {f[0]:.6f} {f[1]:.6f} {f[2]:.6f}"
            for z, p, f in zip(crystal.atomic_numbers, crystal.positions, crystal.labels["forces"], strict=True)
        )
        lattice = " ".join(f"{x:.10f}" for x in np.ravel(crystal.cell))
        text += (
            f'8\nLattice="{lattice}" Properties=species:S:1:pos:R:3:forces:R:3 '
            f'energy={crystal.labels["energy"]} {stress}="{numbers}"\n{rows}\n'
        )
    return text


SALT = {"Na": -1.0, "Cl": -2.0}


def test_a13_stress_with_six_or_nine_components(load):
    voigt = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    nine = load(crystal_text(), atomic_energies=SALT).train
    six = load(crystal_text(value=lambda c: [c.labels["stress"][i] for i in voigt]), atomic_energies=SALT).train
    for a, b in zip(nine, six, strict=True):
        np.testing.assert_allclose(a.labels["stress"], b.labels["stress"], atol=1e-12)
        assert a.labels["stress"].shape == (3, 3)
    refused(load, crystal_text(value=lambda c: [1, 2, 3]), atomic_energies=SALT,
            match="frame 0: stress: has 3 components; expected 6")  # fmt: skip
    refused(load, crystal_text(value=lambda c: [1, 2, 3, 4, 5, 6, 7, 8, 9]), atomic_energies=SALT,
            match="frame 0: stress: is not symmetric")  # fmt: skip


def argon(count=25, sign=1.0, unit=1.0):
    """Argon at various volumes with Lennard-Jones stress."""
    from ase.calculators.lj import LennardJones

    rng = np.random.default_rng(0)
    result = []
    for _ in range(count):
        atoms = bulk("Ar", "fcc", a=5.3 * (1 + 0.05 * rng.normal()), cubic=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0)
        labels = {
            "energy": np.array(atoms.get_potential_energy()),
            "forces": 20 * atoms.get_forces(),
            "stress": sign * unit * atoms.get_stress(voigt=False),
        }
        result.append(dataclasses.replace(Structure.from_ase(atoms), labels=labels))
    return result


def test_a14_stress_of_the_other_sign_or_unit(tmp_path):
    path = tmp_path / "a.xyz"
    config = DatasetConfig(train=path, atomic_energies={"Ar": 0.0})
    write_extxyz(path, argon())
    right = load_dataset(config)
    write_extxyz(path, argon(sign=-1))
    with pytest.warns(EquijaxWarning, match=r"stress: .*opposite sign \(VASP's\): set stress_sign: -1"):
        load_dataset(config)
    fixed = load_dataset(config.model_copy(update={"stress_sign": -1}))
    np.testing.assert_allclose(fixed.train[0].labels["stress"], right.train[0].labels["stress"])
    write_extxyz(path, argon(unit=1602.1766))
    with pytest.warns(EquijaxWarning, match=r"stress: root mean square .*set dataset.units.stress: GPa \(or kbar\)"):
        load_dataset(config)
    kbar = DatasetConfig.model_validate({**config.model_dump(), "units": {"stress": "kbar"}})
    np.testing.assert_allclose(load_dataset(kbar).train[0].labels["stress"], right.train[0].labels["stress"], rtol=1e-6)


def test_a15_virial_and_stress(load):
    def virial(crystal):
        return -crystal.labels["stress"] * crystal.volume

    from_virial = load(crystal_text("virial", virial), atomic_energies=SALT, keys={"virial": "virial"}).train
    from_stress = load(crystal_text(), atomic_energies=SALT).train
    np.testing.assert_allclose(from_virial[0].labels["stress"], from_stress[0].labels["stress"], atol=1e-9)
    message = refused(load, crystal_text("virials", virial), atomic_energies=SALT, match="no frame has 'stress'")
    assert "did you mean 'virials'? Write keys: {virial: virials}" in message

    def both(factor):
        lines = crystal_text("virial", virial).splitlines()
        stresses = iter(re.findall(r'stress="([^"]*)"', crystal_text(value=lambda c: factor * c.labels["stress"])))
        return "\n".join(f'{line} stress="{next(stresses)}"' if "virial" in line else line for line in lines) + "\n"

    np.testing.assert_allclose(
        load(both(1), atomic_energies=SALT).train[0].labels["stress"], from_stress[0].labels["stress"], atol=1e-9
    )
    message = refused(load, both(-1), atomic_energies=SALT, match="frame 0: stress: stress and virial contradict")
    assert "try stress_sign: -1" in message
    chosen = load(both(-1), atomic_energies=SALT, keys={"virial": "virial", "stress": None}).train
    np.testing.assert_allclose(chosen[0].labels["stress"], from_stress[0].labels["stress"], atol=1e-9)
    assert load(both(-1), atomic_energies=SALT, keys={"stress": "stress"}, stress_sign=1)


def test_a16_stress_on_a_molecule(load):
    text = frames(4, extra='stress="1 2 3 0 0 0"')
    dataset = load(text)
    assert "stress" not in dataset.train[0].labels
    assert dataset.notes["stress ignored on frames that are not periodic in three directions"] == 4
    assert "not periodic in three directions: 4" in dataset.summary
    refused(load, text, strict=True, match="frame 0: stress: a stress label on a frame that is not periodic")


def test_a17_other_units(load, tmp_path):
    hartree, kcal = 27.211386245988, 0.0433641
    rng = np.random.default_rng(0)
    reference = -2041.0 - 27.2

    def text(unit, length=1.0):
        return frames(1, energy=f"{(reference - 9.7) / unit:.8f}", forces="0 0 0") + "".join(
            water_frame(
                energy=f"{(reference - 9.7 + 0.1 * rng.normal()) / unit:.8f}",
                forces=" ".join(f"{x:.6f}" for x in rng.normal(size=3) * length / unit),
                extra=f"n={i}",
            ).replace("0.119", f"{0.119 + 0.001 * i}")
            for i in range(1, 20)
        )

    def messages(*args, **kwargs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = load(*args, **kwargs)
        return dataset, " | ".join(str(w.message) for w in caught)

    _, said = messages(text(1.0))
    assert not said
    _, said = messages(text(hartree, 0.529177), atomic_energies={"H": -0.5, "O": -75.005})
    assert "energies of free atoms in Hartree, not eV; set dataset.units.energy: Hartree" in said
    assert "forces: root mean square 0.0" in said
    assert "Hartree/bohr" in said
    assert "in Hartree it would be" in said
    _, said = messages(text(kcal), atomic_energies={"H": -313.6, "O": -47067.0})
    assert "free atoms in kcal/mol" in said
    assert "kcal/mol/angstrom" in said
    (tmp_path / "e0.xyz").write_text(isolated_atoms(hydrogen="-0.499798", oxygen="-75.005365"))
    declared, said = messages(
        text(hartree, 0.529177),
        atomic_energies={"file": tmp_path / "e0.xyz"},
        units={"energy": "Hartree", "forces": "Hartree/bohr"},
    )
    assert not said
    assert float(declared.train[0].labels["energy"]) == pytest.approx(reference - 9.7, abs=1.0)
    assert declared.atomic_energies[1] == pytest.approx(-13.6, abs=1e-3)


def test_a17_units_are_needed_where_the_format_has_none(tmp_path):
    write_npz(tmp_path / "a.npz", waters(4))
    config = {"train": tmp_path / "a.npz", "atomic_energies": E0}
    with pytest.raises(
        EquijaxError, match=r"a\.npz: units: npz files do not say what units they are in; expected units"
    ):
        load_dataset(DatasetConfig.model_validate(config))
    load_dataset(DatasetConfig.model_validate({**config, "units": {"energy": "eV"}}))


def test_a17_positions_in_bohr_or_nm(tmp_path):
    for factor, unit in ((0.1, "nm"), (5.0, "bohr")):
        items = [dataclasses.replace(s, positions=s.positions * factor) for s in waters(5)]
        write_extxyz(tmp_path / "a.xyz", items)
        with pytest.warns(EquijaxWarning, match=rf"positions: .*if the file is in {unit}, set dataset.units.length"):
            load_dataset(DatasetConfig(train=tmp_path / "a.xyz", atomic_energies=E0))


def test_a18_references_of_another_method(load):
    match = r"frame \d+: atomic_energies: energy minus the sum of atomic energies is -\d+.\d eV/atom"
    message = refused(load, frames(4), atomic_energies={"H": -1.1, "O": -1.9}, match=match)
    assert "E0 {H: -1.1000, O: -1.9000}" in message
    assert "least_squares" in message
    with pytest.warns(EquijaxWarning, match=match):
        load(frames(4), atomic_energies={"H": -13.6, "O": -1970.0})


def test_a19_least_squares_that_is_not_determined(load):
    with pytest.warns(EquijaxWarning, match="E0s not identifiable: the compositions of 5 frames determine 1 of 2"):
        dataset = load(frames(6), atomic_energies="least_squares")
    total = 2 * dataset.atomic_energies[1] + dataset.atomic_energies[8]
    assert total == pytest.approx(np.mean([s.labels["energy"] for s in dataset.train]))
    hydroxyl = '2\nProperties=species:S:1:pos:R:3 energy=-2059.0 pbc="F F F"\nO 0 0 0\nH 0 0 0.97\n'
    energies = load(frames(6) + hydroxyl, valid=frames(1).replace("0.119", "0.2"), atomic_energies="least_squares")
    assert energies.atomic_energies[1] == pytest.approx(-19, abs=0.1)


def test_a20_two_energies_for_one_isolated_atom(load):
    text = frames(4) + isolated_atoms() + isolated_atoms(hydrogen="-12.9")
    message = refused(load, text, atomic_energies="isolated_atoms", match="frame 6: energy: an isolated H atom")
    assert "-12.900000 eV" in message
    assert "train.xyz frame 4 has the same atom with -13.600000 eV" in message
    same = load(frames(4) + isolated_atoms() * 2, atomic_energies="isolated_atoms")
    assert same.atomic_energies == {1: -13.6, 8: -2041.0}


@pytest.mark.parametrize("kind", ["IsolatedAtom", "isolated_atom", "anything"])
def test_isolated_atoms_are_references_not_training_frames(load, kind):
    dataset = load(frames(4) + isolated_atoms(kind=kind), atomic_energies="isolated_atoms")
    assert dataset.atomic_energies == {1: -13.6, 8: -2041.0}
    assert len(dataset.train) + len(dataset.valid) == 4
    assert len(dataset.isolated) == 2
    message = refused(load, frames(4), atomic_energies="isolated_atoms", match="no isolated atom of H, O")
    assert "least_squares" in message
    refused(load, frames(4), atomic_energies={"H": -13.6}, match="no isolated atom of O in atomic_energies")
    refused(load, frames(4), atomic_energies={"H": -13.6, "Oo": 1.0}, match="'Oo' is not a chemical symbol")


def test_a21_element_not_seen_in_training(load):
    other = water_frame(element="S").replace("0.119", "0.3")
    message = refused(load, frames(4), valid=other, match=r"valid.xyz frame 0: species: S occurs in valid")
    assert "elements seen in training: H, O" in message


def test_a22_duplicates_across_parts(load):
    with pytest.warns(EquijaxWarning, match=r"2 equal frames in train and valid, the first .*train.xyz frame 0 and"):
        load(frames(4), valid=frames(2))
    dataset = load(frames(4) + frames(1), valid=frames(1).replace("0.119", "0.15"))
    assert any("1 frames of train occur twice" in w for w in audit_dataset(dataset, cutoff=3.0).warnings)


def test_a23_partly_periodic_cells():
    slab = Structure.from_ase(fcc111("Al", (1, 1, 2), vacuum=8.0))
    assert slab.pbc == (True, True, False)
    no_vector = slab.cell.copy()
    no_vector[2] = 0.0
    without = dataclasses.replace(slab, cell=no_vector)
    assert len(neighbor_list(slab, 5.0)) == len(neighbor_list(without, 5.0)) > 0
    with pytest.raises(EquijaxError, match="pbc: periodic along cell vector c, which is zero"):
        neighbor_list(dataclasses.replace(without, pbc=(True, True, True)), 5.0)
    flat = dataclasses.replace(slab, cell=np.array([[3.0, 0, 0], [0, 3, 0], [3, 3, 0]]), pbc=(True, True, True))
    with pytest.raises(EquijaxError, match="the periodic cell vectors are linearly dependent"):
        neighbor_list(flat, 5.0)


def test_a24_left_handed_and_skewed_cells_have_the_same_distances():
    rng = np.random.default_rng(0)
    cell = np.eye(3) * 4 + rng.normal(size=(3, 3)) * 0.3
    positions = rng.uniform(0, 4, (3, 3))
    lengths = []
    for matrix in (np.eye(3), [[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [5, 1, 0], [-4, 3, 1]]):
        item = Structure(np.ones(3, int), positions, np.array(matrix) @ cell, (True, True, True))
        lengths.append(np.sort(np.linalg.norm(neighbor_list(item, 5.0).vectors, axis=1)))
    np.testing.assert_allclose(lengths[0], lengths[1], atol=1e-10)
    np.testing.assert_allclose(lengths[0], lengths[2], atol=1e-10)


def test_a25_cells_smaller_than_the_cutoff():
    assert len(neighbor_list(Structure.from_ase(bulk("Cu")), 5.0)) == 42
    tiny = Structure(np.array([1]), np.zeros((1, 3)), np.eye(3) * 0.3, (True, True, True), file="a.xyz", frame=0)
    grid = 0.3 * np.array(list(itertools.product(range(-17, 18), repeat=3)))
    assert len(neighbor_list(tiny, 5.0)) == (np.linalg.norm(grid, axis=1) < 5.0).sum() - 1
    with pytest.raises(EquijaxError, match=r"a.xyz frame 0: about 1.94e\+04 edges .* more than the limit of 1e\+04"):
        neighbor_list(tiny, 5.0, max_edges=10_000)


def test_a26_atoms_in_one_place_or_very_close(load):
    positions = np.array([[0.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0]])
    with pytest.raises(EquijaxError, match="atoms 1 and 2 are at the same place"):
        neighbor_list(Structure(np.ones(3, int), positions), 5.0)
    positions[2, 2] = 1.05
    item = Structure(np.ones(3, int), positions)
    assert np.isfinite(structure_graph(item, 5.0, (1,)).vectors()).all()
    text = frames(3) + water_frame(energy="-2070").replace("0.0 0.763", "0.0 0.01").replace("-0.763", "0.06")
    dataset = load(text, valid=frames(1).replace("0.119", "0.2"), atomic_energies=E0)
    assert any("two atoms are 0.050 Å apart" in w for w in audit_dataset(dataset, cutoff=3.0).warnings)
    same = frames(3) + water_frame(energy="-2070").replace("-0.763", "0.763")
    refused(load, same, match="train.xyz frame 3: atoms 1 and 2 are at the same place")


def test_a27_frame_above_the_budget():
    sizes = [(10, 90)] * 5 + [(500, 20000)]
    places = [f"a.xyz frame {i}" for i in range(6)]
    with pytest.raises(EquijaxError, match=r"a.xyz frame 5: 500 atoms and 20000 edges .* to max_atoms: 500"):
        plan_batches(sizes, BatchBudget(max_atoms=100), places=places)
    batches = plan_batches(sizes, BatchBudget(max_atoms=100, oversized="alone"))
    assert sorted(i for one in batches for i in one) == list(range(6))


def test_a29_files_that_change_or_vanish(load, tmp_path):
    dataset = load(frames(4))
    check_fingerprints(dataset.fingerprints)
    check_fingerprints(dataset.fingerprints, dict(dataset.fingerprints))
    (tmp_path / "train.xyz").write_text(frames(5))
    with pytest.raises(EquijaxError, match=r"train.xyz has changed \(sha256 .*restore the files or start a new run"):
        check_fingerprints(dataset.fingerprints)
    (tmp_path / "train.xyz").unlink()
    with pytest.raises(EquijaxError, match=r"train.xyz is gone"):
        check_fingerprints(dataset.fingerprints)


def test_c3_c4_positions_that_no_list_can_handle():
    good = waters(1)[0]
    bad = good.positions.copy()
    bad[2, 1] = np.nan
    with pytest.raises(EquijaxError, match="atom 2 position is not finite"):
        neighbor_list(dataclasses.replace(good, positions=bad), 5.0)
    for distance in (1e6, 1e12, 1e300):
        bad[2] = distance
        with pytest.raises(EquijaxError, match=r"atom 2 at .* has flown away"):
            neighbor_list(dataclasses.replace(good, positions=bad), 5.0)


def test_d3_no_neighbours():
    far = [dataclasses.replace(s, positions=s.positions * 20) for s in waters(3)]
    with pytest.raises(EquijaxError, match="no atom of the training frames has a neighbour within 5 Å"):
        training_statistics(far, {1: 0.0, 8: 0.0}, 5.0)


def test_d4_only_energies_or_only_forces(load):
    dataset = load(frames(4).replace(":forces:R:3", ":velo:R:3"))
    assert set(dataset.train[0].labels) == {"energy"}
    dataset = load(frames(4).replace("energy=", "weight="))
    assert set(dataset.train[0].labels) == {"forces"}


def test_d5_outlier_forces(load):
    outlier = water_frame(energy="-2078", forces="10000 0 0").replace("0.119", "0.17")
    with pytest.warns(EquijaxWarning, match="forces: root mean square"):
        dataset = load(frames(60) + outlier, valid=frames(1).replace("0.119", "0.2"))
    found = audit_dataset(dataset, cutoff=3.0)
    assert any("frame 60: a force of 1e+04 eV/Å" in o for o in found.parts["train"]["outliers"])
    assert "a force of 1e+04" in found.text()
    dataset = load(frames(60) + outlier, valid=frames(1).replace("0.119", "0.2"), max_force=50)
    assert len(dataset.train) == 60
    assert "is above max_force 50" in dataset.skipped[0].reason
    assert max(map(max_force, dataset.train)) < 50


def test_fixed_atoms_with_zero_forces_are_noted(load):
    text = ""
    for frame in frames(4).split("3\nProperties")[1:]:
        head, *rows = ("3\nProperties" + frame).splitlines()[1:]
        rows = [f"{row} T" for row in rows]
        rows[0] = " ".join(rows[0].split()[:4]) + " 0 0 0 F"
        text += "\n".join(["3", head.replace("forces:R:3", "forces:R:3:move_mask:L:1"), *rows]) + "\n"
    dataset = load(text)
    assert any("fixed atoms have zero forces" in note for note in dataset.notes)


def test_labels_optional_for_prediction(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    assert read_structures(tmp_path / "a.xyz")[0].labels == {}
    with pytest.raises(EquijaxError, match="no labels"):
        read_structures(tmp_path / "a.xyz", labels="required")
