"""Loading, splitting, reference energies, statistics and the audit on good data."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from equijax import units
from equijax.datasets import DatasetConfig, audit, load_dataset, training_statistics
from equijax.datasets.config import Count, Fraction, expand
from equijax.datasets.e0 import least_squares
from equijax.datasets.extxyz import write_extxyz
from equijax.datasets.plan import plan_part
from equijax.datasets.splits import split
from equijax.errors import EquijaxError
from equijax.graph.batching import BatchBudget
from equijax.structure import Structure
from tests.datasets.frames import WATER, isolated_atoms, waters

E0 = {"H": -13.6, "O": -2041.0}
FIXED_SPLIT = [2, 7, 9, 12, 17, 25, 27]  # of 30 frames with seed 0: published splits rely on it


@pytest.fixture
def folder(tmp_path):
    write_extxyz(tmp_path / "train.xyz", waters(30))
    write_extxyz(tmp_path / "more.xyz", waters(10, seed=1))
    write_extxyz(tmp_path / "hot.xyz", waters(5, seed=2))
    (tmp_path / "atoms.xyz").write_text(isolated_atoms())
    return tmp_path


def test_parts_and_fingerprints(folder):
    dataset = load_dataset(
        DatasetConfig(
            train=(folder / "train.xyz", folder / "more.xyz"),
            valid=Fraction(fraction=0.25),
            test={"hot": folder / "hot.xyz"},
            atomic_energies={"file": folder / "atoms.xyz"},
        )
    )
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 30, "valid": 10, "test hot": 5}
    assert dataset.atomic_energies == {1: -13.6, 8: -2041.0}
    assert {str(folder / n) for n in ("train.xyz", "more.xyz", "hot.xyz", "atoms.xyz")} == set(dataset.fingerprints)
    assert all(len(digest) == 64 for digest in dataset.fingerprints.values())
    assert "train: 30 frames (energy, forces)" in dataset.summary


def test_split_depends_on_the_seed_alone(folder):
    config = DatasetConfig(train=folder / "train.xyz", valid=Count(count=7), atomic_energies=E0)
    picks = [[s.frame for s in load_dataset(config, seed=seed).valid] for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
    stay, chosen = split(30, Count(count=7), 0)
    assert sorted(stay + chosen) == list(range(30))
    assert chosen == picks[0] == sorted(picks[0])
    assert chosen == FIXED_SPLIT
    with pytest.raises(EquijaxError, match="leave none to train on"):
        split(5, Count(count=5), 0)
    assert len(split(5, Fraction(fraction=0.01), 0)[1]) == 1


def test_patterns_and_folders(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    config = DatasetConfig(
        train=("train.xyz", "mor*.xyz"), test={"a": "hot.xyz"}, atomic_energies={"file": "atoms.xyz"}
    )
    with pytest.raises(EquijaxError, match="no such file"):
        load_dataset(config)
    resolved = config.resolved(folder)
    assert len(load_dataset(resolved).train) == 36
    assert expand(resolved.train, "train") == [folder / "train.xyz", folder / "more.xyz"]
    assert resolved.resolved("/nowhere") == resolved


def test_least_squares_recovers_reference_energies():
    rng = np.random.default_rng(0)
    truth = {1: -13.6, 6: -1029.0, 8: -2041.0}
    structures = []
    for _ in range(20):
        numbers = rng.choice([1, 6, 8], size=rng.integers(2, 9))
        energy = sum(truth[int(z)] for z in numbers)
        labels = {"energy": np.array(energy)}
        structures.append(Structure(numbers, rng.normal(size=(len(numbers), 3)), labels=labels))
    assert least_squares(structures) == pytest.approx(truth)


def test_statistics():
    chain = Structure(np.array([8, 1, 1]), WATER, labels={"energy": np.array(-10.0), "forces": np.full((3, 3), 2.0)})
    alone = Structure(np.array([1]), np.zeros((1, 3)), labels={"energy": np.array(-1.0)})
    numbers = training_statistics([chain, alone], {1: -1.0, 8: -2.0}, cutoff=1.2)
    assert numbers.atomic_numbers == (1, 8)
    # Two O-H bonds of 0.97 Å; the free atom has no neighbour and does not count.
    assert numbers.avg_num_neighbors == pytest.approx(4 / 3)
    assert numbers.num_edges == 4
    assert numbers.mean_shift == pytest.approx((-6 / 3 + 0) / 2)
    assert numbers.force_rms == 2.0
    with pytest.raises(EquijaxError, match=r"none for atomic numbers \[8\]"):
        training_statistics([chain], {1: 0.0}, 1.2)


def experiment(folder, **dataset):
    settings = {"train": folder / "train.xyz", "test": {"hot": folder / "hot.xyz"}, "atomic_energies": E0, **dataset}
    return SimpleNamespace(
        dataset=DatasetConfig.model_validate(settings),
        model=SimpleNamespace(cutoff=4.0, hidden_irreps="16x0e+16x1o", lmax=2, num_layers=2),
        training=SimpleNamespace(batch=BatchBudget(max_structures=5)),
        seed=3,
        dtype="float32",
    )


def test_audit(folder):
    report = audit(experiment(folder))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["parts"]["train"]["frames"] == 27
    assert data["parts"]["train"]["labels"] == {"energy": 27, "forces": 27}
    assert data["parts"]["train"]["elements"] == {"H": 54, "O": 27}
    assert data["parts"]["train"]["neighbors"] == {"mean": 2.0, "max": 2, "atoms_without": 0}
    assert 0.7 < data["parts"]["train"]["distance_min"] < 1.0
    assert data["warnings"] == []
    plan = data["plan"]["train"]
    assert plan["batches_per_epoch"] == 6
    assert plan["expected_compilations"] == len(plan["shapes"]) <= 4
    assert 0 <= plan["edge_waste"] < 1
    assert plan["memory_bytes"] > 0
    text = report.text()
    for words in ("train: 27 frames", "labels: energy 27/27", "elements: H 54, O 27", "nearest distance", "no warnings",
                  "6 batches per epoch", "atomic energies (eV): H -13.6"):  # fmt: skip
        assert words in text


def test_audit_repeats_the_warnings_of_loading(folder):
    report = audit(experiment(folder, valid=folder / "train.xyz", atomic_energies="least_squares"))
    assert any("30 equal frames in train and valid" in warning for warning in report.warnings)
    assert any("E0s not identifiable" in warning for warning in report.warnings)
    assert "WARNING 30 equal frames" in report.text()


def test_plan_counts_every_batch():
    sizes = np.array([(15, 180, 14)] * 43)
    plan = plan_part("train", sizes, BatchBudget(max_structures=10))
    assert plan.batches_per_epoch == sum(plan.visits.values()) == 5
    slots = sum(c.edges * n for c, n in plan.visits.items())
    assert plan.edge_waste == pytest.approx(1 - 43 * 180 / slots)
    assert plan.memory_bytes is None


def test_unit_conversions_agree_with_ase():
    import ase.units

    # ASE uses CODATA 2014, which differs in the ninth digit.
    for ours, theirs in (
        (units.energy_unit("Hartree"), ase.units.Hartree),
        (units.energy_unit("kcal/mol"), ase.units.kcal / ase.units.mol),
        (units.energy_unit("kJ/mol"), ase.units.kJ / ase.units.mol),
        (units.energy_unit("Ry"), ase.units.Rydberg),
        (units.length_unit("Bohr"), ase.units.Bohr),
        (units.force_unit("kcal/mol/Å"), ase.units.kcal / ase.units.mol),
        (units.force_unit("Hartree/bohr"), ase.units.Hartree / ase.units.Bohr),
        (units.stress_unit("GPa"), ase.units.GPa),
        (units.stress_unit("kbar"), ase.units.GPa / 10),
        (units.stress_unit("Hartree/bohr^3"), ase.units.Hartree / ase.units.Bohr**3),
    ):
        assert ours == pytest.approx(theirs, rel=1e-7)


@pytest.mark.parametrize(
    ("function", "name", "match"),
    [
        (units.energy_unit, "hartre", "'hartre' is not a unit of energy; did you mean 'Hartree'"),
        (units.length_unit, "parsec", "is not a unit of length; known: "),
        (units.force_unit, "eV", "is not a unit of force; expected energy/length"),
        (units.stress_unit, "eV/angstrom", "is not a unit of stress; expected GPa"),
    ],
)
def test_unknown_units(function, name, match):
    with pytest.raises(EquijaxError, match=match):
        function(name)
