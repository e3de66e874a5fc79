"""Matrices that a file lacks, computed by PySCF and kept beside it; and PySCF itself against the orders of orbitals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from equijax.cli.main import run
from equijax.errors import EquijaxError
from equijax.hamiltonians import pyscf_bridge
from equijax.hamiltonians.label_cache import LabelCache, label_key
from equijax.hamiltonians.readers import read_hamiltonians
from equijax.orbitals.layout import layout_for
from equijax.orbitals.rotation import orbital_rotation
from equijax.structure import Structure
from tests.hamiltonians.foreign_files import in_order_of, write_md17, write_qh9_sqlite
from tests.hamiltonians.toy import waters

MIXED = Path(__file__).parents[2] / "data/hamiltonians/mixed_test.npz"


def test_cache_computes_once_and_keys_tell_molecules_and_settings_apart(tmp_path):
    water, other = waters(2)
    matrix = np.random.default_rng(0).normal(size=(4, 4))
    matrix += matrix.T
    cache, calls = LabelCache(tmp_path / "cache.db"), []

    def make() -> np.ndarray:
        calls.append(1)
        return matrix

    for _ in range(3):
        np.testing.assert_array_equal(cache.get("a", make), matrix)
    assert len(calls) == 1
    keys = {label_key(s, name, basis) for s in (water, other) for name in ("overlap", "x") for basis in ("svp", "tz")}
    assert len(keys) == 8
    assert label_key(water, "overlap", "svp") in keys
    (tmp_path / "cache.db").write_bytes(b"something else, long enough to be a header" * 20)
    with pytest.raises(EquijaxError, match=r"cache.db: cannot keep computed matrices: .*; delete the file"):
        cache.get("a", make)


def test_an_interrupted_computation_leaves_what_was_finished(tmp_path):
    cache = LabelCache(tmp_path / "cache.db")
    cache.get("a", lambda: np.eye(2))
    with pytest.raises(ZeroDivisionError):
        cache.get("b", lambda: np.eye(2) / (1 // 0))
    np.testing.assert_array_equal(cache.get("a", lambda: np.zeros((2, 2))), np.eye(2))


@pytest.fixture(scope="module")
def water() -> Structure:
    pytest.importorskip("pyscf")
    return read_hamiltonians(MIXED, limit=1)[0]


def test_missing_matrices_are_those_of_the_data(water, tmp_path, capsys, monkeypatch):
    source, output = write_qh9_sqlite(tmp_path / "QH9Stable.db", [water]), tmp_path / "out.npz"
    assert run(["convert", "hamiltonians", str(source), str(output)]) == 0
    assert "hamiltonian, overlap, initial_hamiltonian" in capsys.readouterr().out
    (found,) = read_hamiltonians(output)
    np.testing.assert_allclose(found.labels["overlap"], water.labels["overlap"], atol=1e-6)
    np.testing.assert_allclose(found.labels["initial_hamiltonian"], water.labels["initial_hamiltonian"], atol=1e-5)
    monkeypatch.setattr(pyscf_bridge, "initial_hamiltonian", None)  # the second time nothing is computed
    (again,) = pyscf_bridge.complete_with_pyscf(read_hamiltonians(source))
    np.testing.assert_allclose(again.labels["initial_hamiltonian"], found.labels["initial_hamiltonian"], atol=1e-6)


def test_matrices_of_another_molecule_are_refused(water, tmp_path):
    path = write_md17(tmp_path / "schnorb_hamiltonian_water.db", [water])
    (found,) = read_hamiltonians(path)
    (completed,) = pyscf_bridge.complete_with_pyscf([found])
    assert set(completed.labels) == {"hamiltonian", "overlap", "initial_hamiltonian"}
    moved = dataclasses.replace(found, positions=1.1 * found.positions)
    with pytest.raises(EquijaxError, match=r"frame 0: overlap: differs from PySCF's by 0\.\d+; expected a matrix"):
        pyscf_bridge.complete_with_pyscf([moved])
    wrong = dataclasses.replace(found, labels={"hamiltonian": in_order_of(found, "hamiltonian", "pyscf")})
    with pytest.raises(EquijaxError, match=r"frame 0: hamiltonian: differs from H0 by 0\.\d+ of its own size"):
        pyscf_bridge.complete_with_pyscf([wrong])


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp"])
def test_overlap_of_pyscf_turns_with_the_molecule(water, basis):
    matrix, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turned = dataclasses.replace(water, positions=water.positions @ matrix.T)
    d = orbital_rotation(layout_for(basis, water.atomic_numbers).molecule_degrees(water.atomic_numbers), matrix)
    before, after = pyscf_bridge.overlap(water, basis), pyscf_bridge.overlap(turned, basis)
    np.testing.assert_allclose(d @ before @ d.T, after, atol=1e-12)
