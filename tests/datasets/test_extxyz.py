"""The extxyz reader against ASE on good files, and the writer's round trip."""

import gzip
import io

import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.datasets.extxyz import parse_comment, read_extxyz, write_extxyz
from equijax.datasets.readers import read_structures
from tests.datasets.frames import crystals, water_frame, waters


def ase_frames():
    rng = np.random.default_rng(0)
    result = []
    slab = fcc111("Al", (2, 2, 2), vacuum=5.0)
    slab.info.clear()
    for atoms in (molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.6), slab):
        atoms.rattle(0.1, rng=rng)
        calculator = SinglePointCalculator(
            atoms,
            energy=float(rng.normal()),
            forces=rng.normal(size=(len(atoms), 3)),
            **({"stress": rng.normal(size=6)} if all(atoms.pbc) else {}),
        )
        atoms.calc = calculator
        atoms.info.update(config_type="a b", weight=1.5, tags=[1, 2, 3], flag=True)
        atoms.arrays["wiggle"] = rng.normal(size=len(atoms))
        result.append(atoms)
    return result


def test_reads_what_ase_writes(tmp_path):
    path = tmp_path / "a.extxyz"
    written = ase_frames()
    ase.io.write(path, written)
    for ours, theirs in zip(read_extxyz(path), ase.io.read(path, ":"), strict=True):
        np.testing.assert_array_equal(ours.atomic_numbers, theirs.numbers)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_array_equal(ours.cell, theirs.cell.array)
        assert ours.pbc == tuple(theirs.pbc)
        assert ours.info["energy"] == theirs.calc.results["energy"]
        np.testing.assert_array_equal(ours.arrays["forces"], theirs.calc.results["forces"])
        np.testing.assert_array_equal(ours.arrays["wiggle"], theirs.arrays["wiggle"])
        assert ours.info["config_type"] == theirs.info["config_type"] == "a b"
        assert ours.info["weight"] == 1.5
        assert ours.info["flag"] is True
        np.testing.assert_array_equal(ours.info["tags"], [1, 2, 3])
    structures = read_structures(path)
    stress = ase.io.read(path, 1).calc.results["stress"]
    np.testing.assert_allclose(structures[1].labels["stress"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], stress)


@pytest.mark.parametrize("name", ["a.xyz", "b.extxyz.gz"])
def test_round_trip_and_ase_reads_what_we_write(tmp_path, name):
    path = tmp_path / name
    structures = [*waters(3), *crystals(2)]
    write_extxyz(path, structures)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for before, after in zip(structures, read_structures(path), strict=True):
        np.testing.assert_array_equal(before.atomic_numbers, after.atomic_numbers)
        np.testing.assert_allclose(before.positions, after.positions, atol=1e-10)
        np.testing.assert_allclose(before.cell, after.cell, rtol=1e-15, atol=1e-15)
        assert before.pbc == after.pbc
        assert set(before.labels) == set(after.labels)
        for label in before.labels:
            np.testing.assert_allclose(before.labels[label], after.labels[label], atol=1e-10)
    for before, atoms in zip(structures, ase.io.read(path, ":", format="extxyz"), strict=True):
        np.testing.assert_allclose(atoms.positions, before.positions, atol=1e-10)
        assert atoms.get_potential_energy() == pytest.approx(float(before.labels["energy"]), abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), before.labels["forces"], atol=1e-10)
        if "stress" in before.labels:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), before.labels["stress"], atol=1e-12)


def test_info_round_trip(tmp_path):
    import dataclasses

    info = {"config_type": "300 K", "note": 'a "b" \\ c', "n": 3, "x": -1.5e-30, "ok": True, "v": np.array([1.5, 2]),
            "nested": {"a": [1, "b"]}}  # fmt: skip
    path = tmp_path / "a.xyz"
    write_extxyz(path, [dataclasses.replace(waters(1)[0], info=info)])
    read = read_structures(path)[0].info
    assert {k: v for k, v in read.items() if k != "v"} == {k: v for k, v in info.items() if k != "v"}
    np.testing.assert_array_equal(read["v"], info["v"])


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6).filter(
    lambda s: s.lower() not in ("lattice", "properties", "pbc", "energy", "forces")
)
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**9), 10**9),
    st.booleans(),
    # ASE does not read back the quotes, brackets and backslashes it writes.
    st.text(st.sampled_from("abcXYZ0123456789 .:;-+!?@#%&*()<>|~_/"), max_size=12),
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(names, values, max_size=4))
def test_comment_lines_agree_with_ase(info):
    atoms = molecule("H2O")
    info = {key: value for key, value in info.items() if not isinstance(value, str) or value.strip() == value != ""}
    atoms.info.update(info)
    text = io.StringIO()
    try:
        ase.io.write(text, atoms, format="extxyz")
        text.seek(0)
        theirs = ase.io.read(text, format="extxyz").info
    except Exception:
        return  # ASE cannot read some of what it writes.
    comment = text.getvalue().splitlines()[1]
    ours = parse_comment(comment)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=comment)


def test_plain_xyz_crlf_tabs_bom_and_blank_lines(tmp_path):
    good = water_frame(energy="-1.5D+01", forces="1.0d-1 0 0", extra="name='a b'")
    variants = {
        "plain.xyz": good.encode(),
        "crlf.xyz": good.replace("\n", "\r\n").encode(),
        "tabs.xyz": good.replace("O 0.0 0.0", "O\t0.0\t 0.0").encode(),
        "bom.xyz": b"\xef\xbb\xbf" + good.encode(),
        "blank.xyz": ("\n" + good + "\n\n" + good + "\n").encode(),
        "zipped.xyz.gz": gzip.compress(good.encode()),
        "no_newline.xyz": good.rstrip("\n").encode(),
    }
    for name, data in variants.items():
        (tmp_path / name).write_bytes(data)
        structure = read_structures(tmp_path / name)[0]
        assert float(structure.labels["energy"]) == -15.0
        assert structure.labels["forces"][0].tolist() == [0.1, 0, 0]
        assert structure.info["name"] == "a b"
    assert len(read_structures(tmp_path / "blank.xyz")) == 2
    (tmp_path / "comment.xyz").write_text("2\nmade by hand\nH 0 0 0\nh 0 0 0.74 0.5\n")
    structure = read_structures(tmp_path / "comment.xyz")[0]
    assert structure.atomic_numbers.tolist() == [1, 1]
    assert not structure.labels


def test_periodicity_defaults():
    for comment, pbc in (
        ('Lattice="5 0 0 0 5 0 0 0 5"', (True, True, True)),
        ('Lattice="5 0 0 0 5 0 0 0 5" pbc="T T F"', (True, True, False)),
        ('pbc="F F F"', (False, False, False)),
        ("", (False, False, False)),
    ):
        frame = water_frame(comment=f"Properties=species:S:1:pos:R:3:forces:R:3 {comment}")
        atoms = ase.io.read(io.StringIO(frame), format="extxyz")
        assert tuple(atoms.pbc) == pbc
        from equijax.datasets.extxyz import _frame

        rows = [line.split() for line in frame.splitlines()[2:]]
        ours = _frame(frame.splitlines()[1], rows, 3, "a", 0, 0)
        assert ours.pbc == pbc
        np.testing.assert_array_equal(ours.cell, atoms.cell.array)


def test_five_hundred_frames_take_about_a_second(tmp_path):
    import time

    path = tmp_path / "a.xyz"
    write_extxyz(path, waters(500))
    start = time.perf_counter()
    assert len(read_structures(path)) == 500
    assert time.perf_counter() - start < 3
