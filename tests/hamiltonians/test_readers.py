"""Readers of our own layout, of QH9 and of the MD17 Hamiltonians: the same molecules from all of them, and refusals."""

from __future__ import annotations

import dataclasses
import pickle
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from equijax.cli.main import run
from equijax.datasets.config import Count, DatasetConfig
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.hamiltonians.matrix_file import write_hamiltonians
from equijax.hamiltonians.plain_records import plain_record
from equijax.hamiltonians.readers import read_hamiltonians
from equijax.orbitals.layout import LAYOUTS
from equijax.orbitals.order import matrix_from_e3nn
from equijax.structure import Structure
from equijax.train.hamiltonian_setup import load_hamiltonian_dataset
from tests.faults.test_no_pickle import PAYLOADS, raw
from tests.hamiltonians.foreign_files import (
    qh9_record,
    write_lmdb,
    write_md17,
    write_qh9_lmdb,
    write_qh9_sqlite,
)

MIXED = Path(__file__).parents[2] / "data/hamiltonians/mixed_test.npz"


@pytest.fixture(scope="module")
def molecules() -> list[Structure]:
    """One of each: H2O, NH3, CH4, HCN, H2CO."""
    return read_hamiltonians(MIXED)[::10]


def assert_same(found, expected, labels=("hamiltonian",), functional="b3lyp5"):
    assert len(found) == len(expected)
    for frame, (one, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(one.atomic_numbers, other.atomic_numbers)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-14)
        assert set(one.labels) == set(labels)
        for label in labels:
            np.testing.assert_allclose(one.labels[label], other.labels[label], atol=1e-15)
        assert (one.info["basis"], one.info["functional"]) == ("def2-svp", functional)
        assert one.frame == frame


@pytest.mark.parametrize(
    ("name", "dynamic", "functional"),
    [("QH9Stable.db", False, "b3lyp5"), ("QH9Dynamic_300k.db", True, "b3lyp5"), ("QH9Dynamic_100k.db", True, "b3lypg")],
)
def test_qh9_sqlite(molecules, tmp_path, name, dynamic, functional):
    path = write_qh9_sqlite(tmp_path / name, molecules, dynamic)
    found = read_hamiltonians(path)
    assert_same(found, molecules, functional=functional)
    assert [s.info["id"] for s in found] == ([100, 101, 102, 103, 104] if dynamic else [1, 2, 3, 4, 5])
    assert found[0].file == str(path)
    assert [s.frame for s in read_hamiltonians(path, start=1, limit=2)] == [1, 2]
    with pytest.raises(EquijaxError, match="has no molecules from number 5"):
        read_hamiltonians(path, start=5)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_qh9_lmdb(molecules, tmp_path, protocol):
    pytest.importorskip("lmdb")
    folder = write_qh9_lmdb(tmp_path / "QH9Stable.lmdb", molecules, protocol=protocol)
    assert_same(read_hamiltonians(folder), molecules)
    assert_same(read_hamiltonians(folder / "data.mdb"), molecules)


def test_qh9_lmdb_of_a_dynamic_set_is_named_by_its_folder(molecules, tmp_path):
    pytest.importorskip("lmdb")
    folder = tmp_path / "QH9Dynamic_100k/processed"
    folder.mkdir(parents=True)
    write_qh9_lmdb(folder / "QH9Dynamic.lmdb", molecules, dynamic=True)
    assert_same(read_hamiltonians(folder / "QH9Dynamic.lmdb/data.mdb"), molecules, functional="b3lypg")


@pytest.mark.parametrize("as_text", [False, True])
def test_md17(molecules, tmp_path, as_text):
    path = write_md17(tmp_path / "schnorb_hamiltonian_water.db", molecules, as_text=as_text)
    assert_same(read_hamiltonians(path), molecules, ("hamiltonian", "overlap"), "pbe")


@pytest.mark.parametrize("program", ["pyscf", "e3nn"])
def test_md17_in_another_order_is_refused_and_the_order_named(molecules, tmp_path, program):
    path = write_md17(tmp_path / "schnorb_hamiltonian_water.db", molecules, program)
    with pytest.raises(EquijaxError, match=f"frame 0: overlap: the orbitals are not .* they are in that of {program}"):
        read_hamiltonians(path)


@pytest.mark.parametrize("program", ["e3nn", "pyscf", "orca"])
def test_npz_and_its_orders(molecules, tmp_path, program):
    degrees = [LAYOUTS["def2-svp"].molecule_degrees(s.atomic_numbers) for s in molecules]
    theirs = [
        dataclasses.replace(s, labels={k: matrix_from_e3nn(m, d, program) for k, m in s.labels.items()})
        for s, d in zip(molecules, degrees, strict=True)
    ]
    path = write_hamiltonians(tmp_path / "a.npz", theirs, "float64")
    with np.load(path) as archive:
        np.savez(path, **{**archive, "orbital_order": np.array(program)})
    labels = ("hamiltonian", "overlap", "initial_hamiltonian")
    assert_same(read_hamiltonians(path), molecules, labels)


def test_writer_rounds_to_float32_and_refuses_mixtures(molecules, tmp_path):
    (found,) = read_hamiltonians(write_hamiltonians(tmp_path / "a.npz", molecules[:1]))
    np.testing.assert_array_equal(found.labels["overlap"], molecules[0].labels["overlap"].astype(np.float32))
    assert found.info["scf_cycles"] == molecules[0].info["scf_cycles"]
    other = dataclasses.replace(molecules[1], info={"basis": "def2-svp", "functional": "pbe"})
    with pytest.raises(EquijaxError, match="functional: is b3lyp5, pbe"):
        write_hamiltonians(tmp_path / "b.npz", [molecules[0], other])
    without = dataclasses.replace(molecules[1], labels={"hamiltonian": molecules[1].labels["hamiltonian"]})
    with pytest.raises(EquijaxError, match="frame 10: overlap: missing, and other molecules have it"):
        write_hamiltonians(tmp_path / "b.npz", [molecules[0], without])
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orbital_order": None}, "orbital_order: missing; expected the arrays"),
        ({"orbital_order": np.array("psi4")}, "frame 0: orbital_order: orbital order 'psi4': is unknown"),
        ({"num_orbitals": np.array([24, 24], np.int32)}, "num_orbitals"),
        ({"overlap": np.zeros(7)}, r"overlap: is float64 \(7,\); expected numbers \(300,\)"),
        ({"hamiltonian": np.full(300, np.nan)}, "frame 0: hamiltonian: is not finite"),
        ({"positions": np.full((3, 3), np.arange(3.0)[:, None] * 0.2)}, "positions: the nearest atoms are 0.36 times"),
    ],
)
def test_faults_of_npz(molecules, tmp_path, change, message):
    path = write_hamiltonians(tmp_path / "a.npz", molecules[:1])
    with np.load(path) as archive:
        np.savez(path, **{key: value for key, value in {**archive, **change}.items() if value is not None})
    with pytest.raises(EquijaxError, match=f"{re.escape(str(path))}.*{message}"):
        read_hamiltonians(path)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE data SET Ham = substr(Ham, 9) WHERE id = 2", r"frame 1: Ham: is 6720 bytes; expected 6728 bytes"),
        ("UPDATE data SET Z = 'CHO' WHERE id = 1", "frame 0: Z: is str; expected 12 bytes"),
        ("UPDATE data SET N = NULL WHERE id = 1", "frame 0: N: is 'None'"),
        ("ALTER TABLE data RENAME COLUMN Ham TO H", r"of another layout, with data\(H, N, Z, id, pos\)"),
        ("DELETE FROM data", "has no molecules"),
    ],
)
def test_faults_of_qh9(molecules, tmp_path, statement, message):
    path = write_qh9_sqlite(tmp_path / "QH9Stable.db", molecules)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(EquijaxError, match=f"{re.escape(str(path))}.*{message}"):
        read_hamiltonians(path)


def test_what_a_file_does_not_say_is_not_guessed(molecules, tmp_path):
    path = write_qh9_sqlite(tmp_path / "mine.db", molecules)
    with pytest.raises(EquijaxError, match=r"functional: is not in the file.*QH9Stable.*--functional"):
        read_hamiltonians(path)
    assert_same(read_hamiltonians(path, functional="PBE"), molecules, functional="pbe")
    stable = path.rename(tmp_path / "QH9Stable.db")
    with pytest.raises(EquijaxError, match="is pbe, and the file of this name was computed with b3lyp5"):
        read_hamiltonians(stable, functional="pbe")
    # The table of the dynamic sets with positions in Å, and the other way round.
    scaled = [dataclasses.replace(s, positions=0.529 * s.positions) for s in molecules]
    with pytest.raises(EquijaxError, match=r"the nearest atoms are 0\.5"):
        read_hamiltonians(write_qh9_sqlite(tmp_path / "QH9Dynamic_300k.db", scaled, True))
    with pytest.warns(EquijaxWarning, match="converged: the SCF of 5 of 5 molecules"):
        read_hamiltonians(write_qh9_sqlite(tmp_path / "QH9Dynamic_100k.db", molecules, True, converged=0))
    bent = [dataclasses.replace(s, labels={"hamiltonian": np.triu(s.labels["hamiltonian"])}) for s in molecules]
    path = write_qh9_sqlite(tmp_path / "QH9Stable_bent.db", bent)
    with pytest.raises(EquijaxError, match="frame 0: hamiltonian: is not symmetric"):
        read_hamiltonians(path)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_is_unpickled(tmp_path, payload):
    for name in ("QH9Stable.db", "schnorb_hamiltonian_water.db", "data.npz", "data.mdb"):
        canary, path = tmp_path / "canary", tmp_path / name
        path.write_bytes(PAYLOADS[payload](canary))
        with pytest.raises(EquijaxError, match=re.escape(str(path))):
            read_hamiltonians(path)
        assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_records_of_lmdb_are_not_unpickled(molecules, tmp_path, protocol):
    canary = tmp_path / "canary"
    with pytest.raises(EquijaxError, match=r"holds Python objects|is not a record"):
        plain_record(raw(canary, protocol))
    record = qh9_record(molecules[0], 0)
    assert plain_record(pickle.dumps(record, max(protocol, 3))) == record
    for broken in (b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({1: 2}), pickle.dumps(record)[:-40]):
        with pytest.raises(EquijaxError):
            plain_record(broken)
    assert not canary.exists()
    pytest.importorskip("lmdb")
    arrays = record | {"Ham": np.zeros((24, 24))}
    for index, bad in enumerate((raw(canary, protocol), pickle.dumps(arrays, max(protocol, 3)))):
        folder = write_lmdb(tmp_path / f"QH9Stable_{index}.lmdb", [bad])
        with pytest.raises(EquijaxError, match=r"frame 0: the record .*read the \.db file"):
            read_hamiltonians(folder)
    assert not canary.exists()


def test_convert_command(molecules, tmp_path, capsys):
    source = write_qh9_sqlite(tmp_path / "QH9Stable.db", molecules)
    output = tmp_path / "out.npz"
    assert run(["convert", "hamiltonians", str(source), str(output), "--no-complete", "--limit", "3"]) == 0
    assert "wrote 3 molecules" in capsys.readouterr().out
    (found, *_) = read_hamiltonians(output)
    np.testing.assert_allclose(found.labels["hamiltonian"], molecules[0].labels["hamiltonian"], atol=1e-15)


def test_training_on_a_file_without_h0_says_how_to_complete_it(molecules, tmp_path):
    path = write_qh9_sqlite(tmp_path / "QH9Stable.db", molecules)
    config = DatasetConfig(train=path, valid=Count(count=1))
    with pytest.raises(
        EquijaxError,
        match=r"frame 0: initial_hamiltonian: missing.*run: equijax convert hamiltonians \S+QH9Stable.db OUT",
    ):
        load_hamiltonian_dataset(config, 0)
