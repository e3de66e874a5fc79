"""Shards: what is written is what was read, checked as data in memory are, and damage is noticed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from equijax.cli.main import run as cli
from equijax.datasets import DatasetConfig, load_dataset, read_structures
from equijax.datasets.arrays import write_hdf5, write_npz
from equijax.datasets.composition import LabelSums
from equijax.datasets.config import ReadOptions
from equijax.datasets.e0 import least_squares
from equijax.datasets.extxyz import write_extxyz
from equijax.datasets.neighbor_counts import average_neighbors, neighbor_counts, small_molecule_counts
from equijax.datasets.shard_writer import write_shards
from equijax.datasets.shards import Shards
from equijax.datasets.statistics import training_statistics
from equijax.errors import EquijaxError, EquijaxWarning
from tests.datasets.frames import crystals, isolated_atoms, water_frame, waters

EV = {"energy": "eV", "length": "angstrom"}


def all_structures(shards: Shards):
    return [structure for _, block in shards.blocks() for structure in block.structures()]


def assert_same(ours, theirs):
    assert (ours.file, ours.frame, ours.pbc) == (theirs.file, theirs.frame, theirs.pbc)
    assert set(ours.labels) == set(theirs.labels)
    assert set(ours.info) == set(theirs.info)
    pairs = [(ours.positions, theirs.positions), (ours.cell, theirs.cell), (ours.atomic_numbers, theirs.atomic_numbers)]
    pairs += [(ours.labels[name], theirs.labels[name]) for name in theirs.labels]
    pairs += [(ours.info[name], theirs.info[name]) for name in theirs.info]
    for left, right in pairs:
        np.testing.assert_array_equal(left, right)


def contents(directory: Path):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def source(tmp_path):
    """Crystals with stress, waters without energy in every third frame, free text and arrays, and isolated atoms."""
    frames = [
        dataclasses.replace(
            s,
            labels={k: v for k, v in s.labels.items() if i % 3 or k != "energy"},
            info={"config_type": f"kind {i % 2}", "energy_weight": 0.1 + i, "vector": np.array([1.5, i, -2.0])},
        )
        for i, s in enumerate(waters(20))
    ]
    path = tmp_path / "mixed.xyz"
    write_extxyz(path, [*frames[:9], *crystals(8), *frames[9:]])
    path.write_text(path.read_text() + isolated_atoms())
    return path


def test_frames_come_back_exactly_in_their_order(source, tmp_path):
    shards = write_shards([source], tmp_path / "shards", frames_per_shard=5)
    frames = [s for s in read_structures(source) if len(s) > 1]
    assert np.diff(shards.firsts).tolist() == [5, 5, 5, 5, 5, 3]
    for ours, theirs in zip(all_structures(shards), frames, strict=True):
        assert_same(ours, theirs)
    for ours, number in zip(shards.structures([27, 3, 11]), (27, 3, 11), strict=True):
        assert_same(ours, frames[number])


def test_the_manifest_counts_what_there_is(source, tmp_path):
    manifest = write_shards([source], tmp_path / "shards", frames_per_shard=5).manifest
    assert (manifest["frames"], manifest["atoms"]) == (28, 20 * 3 + 8 * 8)
    assert manifest["labels"] == {"energy": 21, "forces": 28, "stress": 8}
    assert manifest["elements"] == {"H": 40, "O": 20, "Na": 32, "Cl": 32}
    assert manifest["isolated_atoms"] == {"H": -13.6, "O": -2041.0}
    assert manifest["sources"][0]["frames"] == 30
    assert manifest["units"]["stress"] == "eV/angstrom^3"


@pytest.mark.parametrize("kind", ["npz", "h5", "db", "xyz.gz"])
def test_every_format_gives_the_same_frames(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("equijax.datasets.arrays.SPOOLED", 100)  # so that small arrays are unpacked to the disk too
    frames = [*waters(12), *crystals(7)]
    path = tmp_path / f"a.{kind}"
    if kind == "db":
        import ase.db
        from ase.calculators.singlepoint import SinglePointCalculator

        with ase.db.connect(path) as table:
            for frame in frames:
                atoms = frame.to_ase()
                labels = {k: float(v) if k == "energy" else v for k, v in frame.labels.items() if k != "stress"}
                atoms.calc = SinglePointCalculator(atoms, **labels)
                table.write(atoms)
        frames = [dataclasses.replace(s, labels={k: v for k, v in s.labels.items() if k != "stress"}) for s in frames]
    else:
        {"npz": write_npz, "h5": write_hdf5, "xyz.gz": write_extxyz}[kind](path, frames)
    options = ReadOptions(units=EV) if kind in ("npz", "h5") else ReadOptions()
    shards = write_shards([path], tmp_path / "shards", options, frames_per_shard=6)
    for ours, theirs in zip(all_structures(shards), frames, strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-9)
        for name, label in theirs.labels.items():
            np.testing.assert_allclose(ours.labels[name], label, atol=1e-9)
    assert not list((tmp_path / "shards").glob(".*"))


FAULTS = {
    "nan energy": (water_frame(energy="nan"), {}),
    "text": (water_frame(energy="abc"), {}),
    "infinite force": (water_frame(forces="0 0 inf"), {}),
    "misnamed": ("".join(water_frame().replace(" energy=", " REF_energy=") for _ in range(2)), {}),
    "wrong key": (water_frame(), {"keys": {"energy": "dft"}}),
    "no element": (water_frame(element="Xx"), {}),
    "truncated": (water_frame()[:-30], {}),
    "short line": (water_frame().replace("H 0.0 0.763", "H 0.763"), {}),
    "empty": ("\n", {}),
    "stress on a molecule": (water_frame(extra='stress="0 0 0 0 0 0"'), {"strict": True}),
    "spin states": (water_frame() + isolated_atoms() + isolated_atoms("-13.5"), {}),
}


@pytest.mark.filterwarnings("ignore::equijax.errors.EquijaxWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_with_the_words_for_data_in_memory(fault, tmp_path):
    text, settings = FAULTS[fault]
    path = tmp_path / "bad.xyz"
    path.write_text(water_frame() * (fault != "misnamed" and fault != "empty" and fault != "wrong key") + text)
    with pytest.raises(EquijaxError) as expected:
        load_dataset(DatasetConfig(train=path, valid={"count": 1}, **settings))
    with pytest.raises(EquijaxError) as found:
        write_shards([path], tmp_path / "shards", ReadOptions(**settings), frames_per_shard=1)
    assert str(found.value) == str(expected.value)
    assert not (tmp_path / "shards").exists()


def test_atoms_in_the_same_place_are_refused(tmp_path):
    frame = waters(1)[0]
    positions = frame.positions.copy()
    positions[2] = positions[1]
    write_extxyz(tmp_path / "a.xyz", [frame, dataclasses.replace(frame, positions=positions)])
    with pytest.raises(EquijaxError, match=r"a.xyz frame 1: atoms 1 and 2"):
        write_shards([tmp_path / "a.xyz"], tmp_path / "shards")


def test_energies_of_another_level_are_refused_and_doubtful_units_warned_of(tmp_path):
    write_extxyz(tmp_path / "a.xyz", waters(20, energy=-20000.0))
    with open(tmp_path / "a.xyz", "a") as stream:
        stream.write(isolated_atoms())
    with pytest.raises(EquijaxError, match=r"a.xyz frame \d+: atomic_energies: energy minus the sum .* eV/atom"):
        write_shards([tmp_path / "a.xyz"], tmp_path / "shards", frames_per_shard=5)
    # Nothing has to be read again to compare with other E0s.
    lines: list[str] = []
    write_shards([tmp_path / "a.xyz"], tmp_path / "shards", frames_per_shard=5, atomic_energies="least_squares",
                 report=lines.append)  # fmt: skip
    assert lines[0] == "continuing after 4 shards"
    big = [dataclasses.replace(s, labels={"forces": 500 * s.labels["forces"]}) for s in waters(20)]
    write_extxyz(tmp_path / "b.xyz", big)
    with pytest.warns(EquijaxWarning, match="root mean square .* usual is"):
        write_shards([tmp_path / "b.xyz"], tmp_path / "b")


def test_frames_left_out_are_listed(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(water_frame() * 2 + water_frame(energy="nan") + water_frame(forces="0 0 60"))
    path.write_text(path.read_text().replace("0 0 0\n", "0 0 0.5\n"))
    options = ReadOptions(on_bad_frame="skip")
    shards = write_shards([path], tmp_path / "shards", options, max_force=50.0, atomic_energies="least_squares")
    assert (shards.frames, shards.manifest["skipped"]) == (2, 2)
    listed = (tmp_path / "shards" / "skipped.csv").read_text().splitlines()
    assert "frame 2" in listed[1]
    assert "max_force" in listed[2]


def test_sums_give_what_the_frames_give(source, tmp_path):
    shards = write_shards([source], tmp_path / "shards", frames_per_shard=5)
    sums = LabelSums.from_json(json.loads(json.dumps(shards.manifest["sums"])))
    frames = all_structures(shards)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact, ours = least_squares(frames), sums.least_squares()
    for z, energy in exact.items():
        assert ours[z] == pytest.approx(energy, rel=1e-10)
    forces = np.concatenate([s.labels["forces"] for s in frames])
    assert sums.force_squares / sums.force_components == pytest.approx(float(np.mean(forces**2)), rel=1e-13)


def test_neighbours_are_counted_once_and_exactly(source, tmp_path):
    shards = write_shards([source], tmp_path / "shards", frames_per_shard=5)
    lines: list[str] = []
    counts = neighbor_counts(shards, 4.0, lines.append)
    np.testing.assert_array_equal(neighbor_counts(shards, 4.0, lines.append), counts)
    assert len(lines) == 1
    statistics = training_statistics(all_structures(shards), dict.fromkeys((1, 8, 11, 17), 0.0), 4.0)
    assert average_neighbors(counts) == statistics.avg_num_neighbors
    assert counts[:, :2].sum(axis=0).tolist() == [statistics.num_atoms, statistics.num_edges]
    block, starts = shards.read(0, 5), shards.read(0, 5).starts()
    small, rest = small_molecule_counts(block, starts, 4.0)
    assert not len(rest)
    np.testing.assert_array_equal(small, counts[:5])
    distance = float(np.linalg.norm(block.arrays["positions"][0] - block.arrays["positions"][1]))
    assert 0 in small_molecule_counts(block, starts, distance)[1]  # rounding decides: left to the neighbour list
    (tmp_path / "shards" / "neighbors_4.h5").write_bytes(b"damaged")
    np.testing.assert_array_equal(neighbor_counts(shards, 4.0, lines.append), counts)
    assert len(lines) == 2


class Stopped(BaseException):
    """Ends a conversion where it is, as a kill does."""


def test_a_conversion_that_was_stopped_anywhere_ends_the_same(source, tmp_path):
    more = tmp_path / "more.xyz"
    write_extxyz(more, waters(9, seed=5))
    write_shards([source, more], tmp_path / "straight", frames_per_shard=5)
    straight = contents(tmp_path / "straight")
    for stop in range(1, 9):
        directory = tmp_path / f"stopped{stop}"
        left = [stop]

        def report(text: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        with pytest.raises(Stopped):
            write_shards([source, more], directory, frames_per_shard=5, report=report)
        with pytest.raises(EquijaxError, match=r"so its shards are not complete; .* run the same equijax shard"):
            Shards(directory)
        write_shards([source, more], directory, frames_per_shard=5)
        assert contents(directory) == straight


def test_a_killed_process_is_continued(tmp_path):
    write_extxyz(tmp_path / "a.xyz", waters(600))
    command = [sys.executable, "-m", "equijax.cli.main", "shard", "a.xyz", "--frames-per-shard", "20", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*command, "killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "killed" / "shard_00004.h5").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    # Relative paths are part of the manifest: the same working directory.
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        assert cli(["shard", "a.xyz", "--frames-per-shard", "20", "--output", "killed", "--quiet"]) == 0
        assert cli(["shard", "a.xyz", "--frames-per-shard", "20", "--output", "straight", "--quiet"]) == 0
    finally:
        os.chdir(here)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_an_unfinished_directory_is_continued_only_with_the_same_data(tmp_path):
    path = tmp_path / "a.xyz"
    write_extxyz(path, waters(20))

    def stop(text: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        write_shards([path], tmp_path / "shards", frames_per_shard=5, report=stop)
    with pytest.raises(EquijaxError, match=r"begun with other frames per shard; run the same .* --overwrite"):
        write_shards([path], tmp_path / "shards", frames_per_shard=6)
    write_extxyz(path, waters(21))
    with pytest.raises(EquijaxError, match="begun with other sources"):
        write_shards([path], tmp_path / "shards", frames_per_shard=5)
    assert write_shards([path], tmp_path / "shards", frames_per_shard=5, overwrite=True).frames == 21
    with pytest.raises(EquijaxError, match="already holds shards"):
        write_shards([path], tmp_path / "shards")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(EquijaxError, match=r"is not empty \(it holds thesis.tex\)"):
            write_shards([path], tmp_path / "full", overwrite=overwrite)


def test_damage_is_noticed(source, tmp_path):
    directory = tmp_path / "shards"
    shards = write_shards([source], directory, frames_per_shard=5)
    assert len(shards.verify()) == 7
    path = directory / "shard_00002.h5"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(good), size=20).tolist():
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(EquijaxError, match=r"shard_00002.h5: is damaged or has changed \(sha256"):
            Shards(directory).verify()
    path.write_bytes(good[:-9])
    with pytest.raises(EquijaxError, match=rf"shard_00002.h5: has {len(good) - 9} bytes; expected {len(good)}"):
        Shards(directory).verify()
    path.unlink()
    with pytest.raises(EquijaxError, match=r"shard_00002.h5: is gone"):
        Shards(directory).verify()
    path.write_bytes(good)
    used = Shards(directory)
    used.verify()
    os.utime(path, ns=(0, 0))
    with pytest.raises(EquijaxError, match=r"shard_00002.h5: has changed while it was in use"):
        used.read(11, 13)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "equijax-shards version 2; expected equijax-shards up to 1"),
        ({"format": "other"}, "is other version 1"),
        ({"frames": 3}, "contradicts itself"),
        ({"shards": [{"file": "../a.h5", "frames": 28}]}, "contradicts itself"),
        ({"shards": 7}, "is not a manifest of shards"),
    ],
)
def test_manifests_that_are_not_sound_are_refused(change, words, source, tmp_path):
    write_shards([source], tmp_path / "shards")
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EquijaxError, match=words):
        Shards(tmp_path / "shards")


def test_the_command_line(source, tmp_path, capsys):
    assert cli(["shard", str(source), "--output", str(tmp_path / "s"), "--frames-per-shard", "10"]) == 0
    assert "28 frames in 3 shards; labels: energy 21/28, forces 28/28, stress 8/28" in capsys.readouterr().out
    refused = {
        "--key=dipole=mu": "dipole",
        "--atomic-energies=x": "expected isolated_atoms",
        "--max-force=-1": "positive number",
        "--on-bad-frame=x": "on_bad_frame",
    }
    for option, words in refused.items():
        assert cli(["shard", str(source), "--output", str(tmp_path / "t"), option]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
