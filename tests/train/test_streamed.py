"""Training from shards: the batches are those of data in memory, a resumed run has the same bits, memory is bounded."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import threading
import tracemalloc
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from equijax.cli.main import run as cli
from equijax.datasets import DatasetConfig, ReadOptions, load_dataset
from equijax.datasets.extxyz import write_extxyz
from equijax.datasets.shard_writer import write_shards
from equijax.datasets.shards import Shards
from equijax.datasets.stream import load_streamed
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.experiment import load_experiment
from equijax.structure import Structure
from equijax.train import loop
from equijax.train.batches import BatchSource
from equijax.train.config import TrainingConfig
from equijax.train.interruption import TrainingInterrupted
from equijax.train.run_directory import RunDirectory
from equijax.train.setup import build_task
from equijax.train.sharing import shared_task
from equijax.train.streamed_setup import reads_shards
from tests.toy_model import ToyConfig
from tests.train.test_trainer import StopAt, records
from tests.train.toy_training import ATOMIC_ENERGIES, ToyExperiment, digest, molecules

TRAINING = {"max_epochs": 2, "checkpoint_every_steps": 4, "checkpoint_every_seconds": None,
            "batch": {"max_structures": 4}}  # fmt: skip
E0S = {"H": -13.6, "C": -1030.0, "O": -2040.0}


@dataclasses.dataclass
class Experiment(ToyExperiment):
    """The toy model on data that are read from files or shards."""

    dataset: DatasetConfig | None = None


def experiment(train, training=None, valid=None, **settings):
    config = {"train": train, "valid": valid or {"count": 6}, "atomic_energies": E0S} | settings
    return Experiment(TrainingConfig(**{**TRAINING, **(training or {})}), dataset=DatasetConfig(**config))


def run(directory, task, allow_changed_data=False):
    place = RunDirectory(directory)
    with pytest.MonkeyPatch.context() as patch, place.locked():
        patch.setattr(loop, "write_report", lambda directory, display: None)
        loop.run_task(task, place, quiet=True, allow_changed_data=allow_changed_data)
    return Path(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """46 molecules in five shards, and six more in a file."""
    place = tmp_path_factory.mktemp("data")
    write_extxyz(place / "train.xyz", molecules(46, seed=1))
    write_extxyz(place / "valid.xyz", molecules(6, seed=2))
    write_shards([place / "train.xyz"], place / "shards", frames_per_shard=10)
    return place


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    return run(tmp_path_factory.mktemp("straight"), build_task(experiment(folder / "shards")))


def leaves(state):
    return jax.tree.leaves(state)


def test_statistics_and_frames_are_those_of_data_in_memory(folder):
    valid = folder / "valid.xyz"
    streamed = build_task(experiment(folder / "shards", valid=valid))
    memory = build_task(experiment(folder / "train.xyz", valid=valid))
    for name, value in dataclasses.asdict(memory.statistics).items():
        assert getattr(streamed.statistics, name) == pytest.approx(value, rel=1e-12), name
    assert streamed.atomic_energies == memory.atomic_energies
    assert (streamed.observed, len(streamed.train.frames)) == (memory.observed, len(memory.train.frames))
    for index in (0, 9, 10, 45):
        ours, theirs = streamed.train.frames[index], memory.train.frames[index]
        assert ours.structure.where == theirs.structure.where
        for left, right in zip(leaves(dataclasses.asdict(ours)), leaves(dataclasses.asdict(theirs)), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_part_taken_out_of_shards_is_that_of_data_in_memory(folder):
    streamed = load_streamed(experiment(folder / "shards").dataset, seed=3)
    memory = load_dataset(experiment(folder / "train.xyz").dataset, seed=3)
    assert [s.where for s in streamed.valid] == [s.where for s in memory.valid]
    assert [s.where for s in streamed.shards.structures(streamed.numbers.tolist())] == [s.where for s in memory.train]
    forces = np.concatenate([s.labels["forces"] for s in memory.train])
    assert streamed.force_rms == pytest.approx(float(np.sqrt(np.mean(forces**2))), rel=1e-12)
    energies = [
        (float(s.labels["energy"]) - sum(ATOMIC_ENERGIES[int(z)] for z in s.atomic_numbers)) / len(s)
        for s in memory.train
    ]
    assert streamed.shift == pytest.approx(np.mean(energies), rel=1e-12)
    assert streamed.spread == pytest.approx(np.std(energies), rel=1e-12)
    assert streamed.labels == {"energy": 40, "forces": 40}


def test_least_squares_energies_are_those_of_all_frames(folder):
    settings = {"valid": folder / "valid.xyz", "atomic_energies": "least_squares"}
    memory = load_dataset(experiment(folder / "train.xyz", **settings).dataset)
    streamed = load_streamed(experiment(folder / "shards", **settings).dataset)
    assert streamed.atomic_energies == pytest.approx(memory.atomic_energies, rel=1e-10)
    assert "least squares over all 46 frames of the shards" in streamed.notes[-1]


def test_every_batch_of_an_epoch_is_read_ahead_once(folder):
    source = build_task(experiment(folder / "shards")).train
    for epoch in (0, 1):
        plan = source.plan(epoch)
        seen = []
        for position, indices, arrays in source.prefetched(plan):
            assert list(indices) == plan[position]
            expected = source.assemble(plan[position])
            for left, right in zip(leaves(arrays), leaves(expected), strict=True):
                np.testing.assert_array_equal(left, right)
            seen += indices
        assert sorted(seen) == list(range(40))
    assert [p for p, *_ in source.prefetched(plan, 7)] == list(range(7, len(plan)))
    assert list(source.prefetched(plan, len(plan))) == []


def test_no_thread_outlives_the_batches_it_reads(folder):
    source = build_task(experiment(folder / "shards")).train
    before = threading.active_count()
    batches = source.prefetched(source.plan(0))
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGINT), (13, signal.SIGTERM)])
def test_a_run_stopped_in_mid_epoch_has_the_bits_of_the_straight_one(
    step, number, folder, straight, tmp_path, monkeypatch
):
    config = experiment(folder / "shards")
    with monkeypatch.context() as patch:
        StopAt(patch, step, number)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path, build_task(config))
    assert 0 < records(straight, "train")[-1]["step"] > step
    run(tmp_path, build_task(config))
    assert digest(tmp_path) == digest(straight)


class SameOrder:
    """Frames in memory, in the batches and shapes of a streamed source."""

    def __init__(self, memory: BatchSource, streamed) -> None:
        self.frames, self.plan, self.capacities = memory.frames, streamed.plan, streamed.capacities
        self.capacity, self.pack, self.dtype = streamed.capacity, memory.pack, memory.dtype
        self.shares = None

    assemble, prefetched, example = BatchSource.assemble, BatchSource.prefetched, BatchSource.example
    parts, _packed = BatchSource.parts, BatchSource._packed


def test_the_same_order_gives_the_same_training_as_data_in_memory(folder, tmp_path):
    valid = folder / "valid.xyz"
    streamed = build_task(experiment(folder / "shards", valid=valid))
    memory = build_task(experiment(folder / "train.xyz", valid=valid))
    # Sums over shards round differently than sums over all frames; the model is to be the same.
    memory = dataclasses.replace(
        memory, statistics=streamed.statistics, module=streamed.module, train=SameOrder(memory.train, streamed.train)
    )
    run(tmp_path / "streamed", streamed)
    run(tmp_path / "memory", memory)
    assert digest(tmp_path / "streamed") == digest(tmp_path / "memory")


def test_changed_shards_are_refused_on_resume(folder, tmp_path):
    place = tmp_path / "shards"
    write_shards([folder / "train.xyz"], place, frames_per_shard=10)
    run(tmp_path / "run", build_task(experiment(place)))
    good = (place / "shard_00001.h5").read_bytes()
    (place / "shard_00001.h5").write_bytes(good[:3000] + bytes([good[3000] ^ 1]) + good[3001:])
    with pytest.raises(EquijaxError, match=r"shard_00001.h5: is damaged or has changed"):
        build_task(experiment(place))
    write_shards([folder / "train.xyz"], place, frames_per_shard=23, overwrite=True)
    with pytest.raises(EquijaxError, match=r"not those the run began with: .*shard_00001.h5 changed"):
        run(tmp_path / "run", build_task(experiment(place)))


def test_validation_and_test_sets_may_be_shards_as_well(folder, tmp_path):
    write_shards([folder / "valid.xyz"], tmp_path / "valid", frames_per_shard=4)
    write_extxyz(tmp_path / "hot.xyz", molecules(5, seed=3))
    write_shards([tmp_path / "hot.xyz"], tmp_path / "hot")
    task = build_task(experiment(folder / "shards", valid=tmp_path / "valid", test={"hot": tmp_path / "hot"}))
    assert (len(task.valid.frames), len(task.test["hot"])) == (6, 5)
    assert str(tmp_path / "valid" / "shard_00001.h5") in task.fingerprints
    with pytest.raises(
        EquijaxError, match=r"dataset.valid: 46 frames would be held in memory, more than the 4 of a shard"
    ):
        build_task(experiment(tmp_path / "valid", valid=folder / "shards"))
    with pytest.raises(EquijaxError, match=r"shards: dataset.valid: is a directory of shards; expected files"):
        build_task(experiment(folder / "train.xyz", valid=folder / "shards"))


def test_equal_frames_and_unknown_elements_are_found(folder, tmp_path):
    frame = molecules(3, seed=1)[2]
    write_extxyz(tmp_path / "same.xyz", [*molecules(2, seed=7), frame])
    write_shards([folder / "train.xyz"], tmp_path / "shards", frames_per_shard=10)
    with pytest.warns(EquijaxWarning, match="1 equal frames in train and valid, the first frame 2 of"):
        build_task(experiment(tmp_path / "shards", valid=tmp_path / "same.xyz"))
    other = Structure(
        np.array([1, 9]),
        np.array([[0, 0, 0], [0, 0, 1.0]]),
        labels=molecules(1)[0].labels | {"forces": np.ones((2, 3))},
    )
    write_extxyz(tmp_path / "other.xyz", [other])
    with pytest.raises(EquijaxError, match=r"other.xyz frame 0: species: F occurs in valid and in no training frame"):
        build_task(experiment(tmp_path / "shards", valid=tmp_path / "other.xyz"))
    far = {"H": -13.6, "C": 1030.0, "O": -2040.0}
    with pytest.raises(EquijaxError, match=r"train.xyz frame \d+: atomic_energies: energy minus the sum"):
        build_task(experiment(tmp_path / "shards", atomic_energies=far))
    with pytest.raises(EquijaxError, match="no isolated atom of H, C, O in the training files"):
        build_task(experiment(tmp_path / "shards", atomic_energies="isolated_atoms"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_force": 10.0}, "dataset.max_force: is decided when shards are written"),
        ({"keys": {"energy": "dft"}}, "dataset.keys: has no effect on shards"),
        ({"units": {"energy": "Hartree"}}, "dataset.units: has no effect on shards"),
        ({"valid": {"fraction": 0.5}}, "dataset.valid: 23 frames would be held in memory, more than the 10 of a shard"),
        ({"atomic_energies": "refit"}, "dataset.atomic_energies: refit is for fine-tuning"),
        ({"train": "LIST"}, "is a directory of shards in a list"),
    ],
)
def test_what_shards_do_not_support_is_refused(settings, words, folder):
    train = (folder / "shards", folder / "train.xyz") if settings.get("train") else folder / "shards"
    with pytest.raises(EquijaxError, match=words):
        build_task(experiment(train, **{k: v for k, v in settings.items() if k != "train"}))


def test_an_unfinished_directory_is_refused(folder, tmp_path):
    write_shards([folder / "train.xyz"], tmp_path / "shards", frames_per_shard=10)
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(EquijaxError, match="so its shards are not complete"):
        build_task(experiment(tmp_path / "shards"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EquijaxError, match=r"empty: dataset.train: is a directory"):
        build_task(experiment(tmp_path / "empty"))


CONFIG = """
dataset: {{train: {shards}, valid: {{count: 5}}, atomic_energies: {{H: -13.6, C: -1030.0, O: -2040.0}}}}
model: {{name: mace, cutoff: 3.0, hidden_irreps: 2x0e, num_layers: 1, correlation: 1, lmax: 1, radial_mlp: [4]}}
training: {{max_epochs: 1, batch: {{max_structures: 8}}}}
"""


@pytest.fixture
def config(folder, tmp_path):
    (tmp_path / "a.yaml").write_text(CONFIG.format(shards=folder / "shards"))
    return tmp_path / "a.yaml"


def test_the_command_line_checks_and_trains(config, tmp_path, capsys):
    assert cli(["check", str(config), "--json", str(tmp_path / "check.json")]) == 0
    out = capsys.readouterr().out
    assert "train: 41 frames; labels: energy 41/41, forces 41/41" in out
    report = json.loads((tmp_path / "check.json").read_text())
    assert sum(shape["batches"] for shape in report["plan"]["shapes"]) == report["plan"]["batches_per_epoch"]
    assert cli(["train", str(config), "--output", str(tmp_path / "run")]) == 0
    assert "46 frames in 5 shards, sha256 of all of them verified" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((tmp_path / "run" / "data_summary.json").read_text())
    assert summary["sets"]["train"] == {"frames": 41, "labels": {"energy": 41, "forces": 41, "stress": 0}}
    assert summary["notes"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fine_tuning": types.SimpleNamespace(replay=None)}, "fine_tuning: does not go with a directory of shards"),
        ({"targets": {"dipole": None}}, "targets.dipole: shards hold energy, forces and stress only"),
    ],
)
def test_unsupported_kinds_of_training_are_refused(change, words, config):
    with pytest.raises(EquijaxError, match=words):
        reads_shards(load_experiment(config).model_copy(update=change))


def test_several_devices_are_refused(folder):
    with pytest.raises(EquijaxError, match=r"training.devices: several devices cannot share training frames in shards"):
        shared_task(build_task(experiment(folder / "shards")), types.SimpleNamespace(count=2))


def test_dispersion_is_not_subtracted_from_shards(config):
    loaded = load_experiment(config, ["dataset.subtract=d3bj:pbe"])
    with pytest.raises(EquijaxError, match=r"dataset.subtract: is not available for shards"):
        build_task(loaded)


def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    spec = importlib.util.spec_from_file_location("streaming_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arrays_in_memory_stay_below_two_shards(folder, tmp_path):
    """Whatever numpy and Python allocate; what the process takes from the system is measured by the slow test."""
    warm = build_task(experiment(folder / "shards")).train  # modules are imported at first use
    assert sum(1 for _ in warm.prefetched(warm.plan(0)))
    benchmark().make_source(tmp_path / "a.h5", frames=1200, atoms=64)
    options = ReadOptions.model_validate({"units": {"energy": "eV", "length": "angstrom"}})

    def peak(work):
        tracemalloc.start()
        try:
            result = work()
            return result, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    shards = write_shards([tmp_path / "a.h5"], tmp_path / "s", options, frames_per_shard=400)
    config = experiment(tmp_path / "s", atomic_energies={"H": -1.0, "C": -2.0, "O": -3.0})
    config = dataclasses.replace(config, model=ToyConfig(cutoff=1.0))
    task, prepared = peak(lambda: build_task(config))
    frames, read = peak(lambda: sum(len(indices) for _, indices, _ in task.train.prefetched(task.train.plan(0))))
    assert frames == 1194
    shard = max(entry["bytes"] for entry in shards.manifest["shards"])
    assert shard > 1.3e6
    assert prepared < 2 * shard
    assert read < 2 * shard


@pytest.mark.slow
def test_a_million_frames_stream_in_less_than_two_shards(tmp_path):
    report = benchmark().main(["--write", "--train", "60", "--folder", str(tmp_path)])
    for part in ("iterate", "train"):
        assert report[part]["extra_shards"] < 2, part
    shards = Shards(tmp_path / "large" / "shards")
    assert shards.frames == 1_000_000
