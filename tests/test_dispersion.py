"""DFT-D3: added to predictions and calculators, taken out of labels, refused where it would be left out."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
from ase.build import bulk

from equijax.calculators import EquijaxCalculator
from equijax.datasets import load_dataset
from equijax.datasets.config import DatasetConfig
from equijax.dispersion import Dispersion, dispersion_of, shifted_labels
from equijax.errors import EquijaxError
from equijax.structure import Structure
from tests.toy_model import stretched, toy_potential

needs_dftd3 = pytest.mark.skipif(importlib.util.find_spec("dftd3") is None, reason="needs the extra dispersion")


def crystal():
    atoms = bulk("C", "diamond", a=3.9)
    atoms.rattle(0.1, seed=2)
    return atoms


@pytest.mark.parametrize("text", ["pbe", "d3bj:", "d4:pbe", "d3bj pbe"])
def test_form(text):
    with pytest.raises(EquijaxError, match=r"dataset\.subtract: is '.*expected DAMPING:FUNCTIONAL, such as d3bj:pbe"):
        Dispersion.parse(text, "dataset.subtract")


@needs_dftd3
def test_water_is_that_of_the_library():
    """TPSS-D3(BJ) of ASE's water as the documentation of simple-dftd3 gives it, eV."""
    from ase.build import molecule

    found = dispersion_of(Dispersion.parse("d3bj:TPSS").calculator(), Structure.from_ase(molecule("H2O")))
    assert found["energy"] == pytest.approx(-0.011441640787279111, abs=1e-9)


@needs_dftd3
def test_unknown_functional():
    with pytest.raises(EquijaxError, match="there are no parameters of d3bj:pbee"):
        Dispersion.parse("d3bj:pbee").calculator()


@needs_dftd3
@pytest.mark.parametrize("atoms", [stretched("CH3OH"), crystal()], ids=["molecule", "crystal"])
def test_predictions_and_calculator_add_it(atoms):
    plain = toy_potential(dtype="float64")
    whole = plain.with_dispersion("d3bj:pbe")
    names = ("energy", "forces", *(("stress",) if atoms.pbc.all() else ()))
    before, after = plain.predict(atoms, names), whole.predict(atoms, names)
    parts = dispersion_of(Dispersion.parse("d3bj:pbe").calculator(), Structure.from_ase(atoms))
    atoms.calc = EquijaxCalculator(whole)
    assert abs(parts["energy"]) > 1e-3
    for name in names:
        np.testing.assert_allclose(after[name] - before[name], parts[name], atol=1e-9)
    assert atoms.get_potential_energy() == pytest.approx(float(after["energy"]), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), after["forces"], atol=1e-9)
    if "stress" in names:
        np.testing.assert_allclose(atoms.get_stress(voigt=False), after["stress"], atol=1e-9)
    assert "energies" not in atoms.calc.results


@needs_dftd3
def test_labels_lose_it_and_get_it_back():
    calculator = Dispersion.parse("d3zero:pbe").calculator()
    atoms = crystal()
    labels = {"energy": np.array(-3.0), "forces": np.ones((2, 3)), "stress": np.zeros((3, 3))}
    structure = dataclasses.replace(Structure.from_ase(atoms), labels=labels)
    without = shifted_labels(structure, calculator, -1)
    parts = dispersion_of(calculator, structure)
    for name in labels:
        np.testing.assert_allclose(without.labels[name], labels[name] - parts[name], atol=1e-12)
        np.testing.assert_allclose(shifted_labels(without, calculator, +1).labels[name], labels[name], atol=1e-12)


@needs_dftd3
def test_what_would_leave_it_out_is_refused():
    whole = toy_potential().with_dispersion("d3bj:pbe")
    with pytest.raises(EquijaxError, match=r"complete only with d3bj:pbe, which is not added there"):
        whole.evaluator()
    with pytest.raises(EquijaxError, match="hessian: the energies of this model"):
        whole.predict(stretched("H2O"), ("hessian",))
    with pytest.raises(EquijaxError, match="is d3bj:b3lyp; this model has d3bj:pbe already"):
        whole.with_dispersion("d3bj:b3lyp")


@needs_dftd3
def test_data_set_loses_it_in_train_and_valid_and_not_in_test(tmp_path):
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for seed in range(6):
        atoms = stretched("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - 0.1 * seed, forces=np.full((3, 3), 0.1 * (seed + 1)))
        frames.append(atoms)
    write(tmp_path / "train.xyz", frames[:4])
    write(tmp_path / "test.xyz", frames[4:])
    plain = DatasetConfig(
        train=tmp_path / "train.xyz",
        valid={"count": 1},
        test={"far": tmp_path / "test.xyz"},
        atomic_energies={"H": 0.0, "O": -9.0},
    )
    before = load_dataset(plain)
    after = load_dataset(plain.model_copy(update={"subtract": "d3bj:pbe"}))
    calculator = Dispersion.parse("d3bj:pbe").calculator()
    for part in ("train", "valid"):
        for old, new in zip(getattr(before, part), getattr(after, part), strict=True):
            expected = float(old.labels["energy"]) - dispersion_of(calculator, old)["energy"]
            assert float(new.labels["energy"]) == pytest.approx(expected, abs=1e-9)
    for old, new in zip(before.test["far"], after.test["far"], strict=True):
        assert new.labels["energy"] == old.labels["energy"]
    assert after.notes["frames of train and valid without their d3bj:pbe dispersion"] == 4
