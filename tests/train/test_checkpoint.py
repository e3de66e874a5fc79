"""Checkpoints: what comes back, what is kept, and that no damage goes unnoticed."""

from __future__ import annotations

import os
import resource
import shutil
import signal

import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.checkpoint import CheckpointNotWritten, CheckpointStore, DamagedCheckpoint, verify


def tree(step, size=7):
    rng = np.random.default_rng(step)
    return {
        "state": {"w": rng.normal(size=size).astype(np.float32), "count": np.int32(step)},
        "best": {"w": rng.normal(size=(2, 3))},
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints, steps 10, 20 and 30."""
    store = CheckpointStore(tmp_path_factory.mktemp("run") / "checkpoints")
    for step in (10, 20, 30):
        store.save(step, tree(step), {"progress": {"step": step}})
    return store.directory


@pytest.fixture
def store(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return CheckpointStore(tmp_path / "checkpoints")


def assert_holds(restored, step):
    found, arrays, progress = restored
    assert (found, progress) == (step, {"progress": {"step": step}})
    for name in ("state", "best"):
        np.testing.assert_array_equal(arrays[name]["w"], tree(step)[name]["w"])
        assert np.asarray(arrays[name]["w"]).dtype == tree(step)[name]["w"].dtype


def test_newest_comes_back_bit_for_bit(store):
    assert_holds(store.restore(tree(0)), 30)


def test_nothing_there_is_not_an_error(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.restore(tree(0)) is None
    assert store.newest_progress() is None


def test_old_ones_are_removed_by_step_and_not_by_time(store):
    os.utime(store.path(10), (4e9, 4e9))  # a clock that went backwards
    store.save(40, tree(40), {"progress": {"step": 40}})
    assert store.steps() == [20, 30, 40]
    assert sorted(p.name for p in store.directory.iterdir()) == ["00000020", "00000030", "00000040"]


def test_half_written_ones_do_not_count_and_are_removed(store):
    shutil.copytree(store.path(30), store.directory / ".unfinished-00000040")
    assert store.steps() == [10, 20, 30]
    store.remove_unfinished()
    assert sorted(p.name for p in store.directory.iterdir()) == ["00000010", "00000020", "00000030"]


def files_of(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def damage(path, kind, rng):
    content = bytearray(path.read_bytes())
    if kind == "flip" and content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    elif kind == "truncate" and content:
        del content[int(rng.integers(len(content))) :]
    elif kind == "delete":
        path.unlink()
        return
    else:
        content += bytes([0])
    path.write_bytes(content)


def test_a_hundred_faults_are_all_noticed(store):
    rng = np.random.default_rng(0)
    names = files_of(store.path(30))
    assert len(names) > 8
    verify(store.path(30))
    kinds = ("flip", "flip", "truncate", "delete", "append")
    for trial in range(100):
        name, kind = names[trial % len(names)], kinds[int(rng.integers(len(kinds)))]
        path = store.path(30) / name
        before = path.read_bytes()
        damage(path, kind, rng)
        with pytest.raises(DamagedCheckpoint) as error:
            verify(store.path(30))
        assert str(store.path(30)) in str(error.value), (name, kind)
        path.write_bytes(before)
    verify(store.path(30))


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_the_one_before_is_used_for_every_kind_of_file(saved, tmp_path, kind):
    rng = np.random.default_rng(1)
    for index, name in enumerate(files_of(saved / "00000030")):
        store = CheckpointStore(tmp_path / str(index))
        shutil.copytree(saved, store.directory)
        damage(store.path(30) / name, kind, rng)
        with pytest.warns(EquijaxWarning, match="00000030.*using step 20 instead"):
            progress = store.newest_progress()
        assert progress == {"progress": {"step": 20}}
        assert store.steps() == [10, 20]
        assert (store.directory / "00000030.damaged").is_dir()
    assert_holds(store.restore(tree(0)), 20)


def test_empty_swapped_and_foreign_directories_are_noticed(store):
    shutil.rmtree(store.path(30))
    store.path(30).mkdir()
    shutil.copytree(store.path(10), store.path(40))
    (store.path(20) / "extra").write_text("?")
    with pytest.warns(EquijaxWarning) as warnings:
        assert_holds(store.restore(tree(0)), 10)
    messages = [str(w.message) for w in warnings]
    assert "00000040: holds step 10" in messages[0]
    assert "manifest.json: cannot be read" in messages[1]
    assert "extra: does not belong to the checkpoint" in messages[2]


def test_all_damaged_is_an_error(store):
    for step in store.steps():
        (store.path(step) / "manifest.json").unlink()
    with pytest.warns(EquijaxWarning), pytest.raises(EquijaxError, match="every checkpoint is damaged"):
        store.restore(tree(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["state"].update(w=np.zeros(8, np.float32)), r"state.w: .*float32 \[7\].*needs float32 \[8\]"),
        (lambda t: t["state"].update(w=np.zeros(7)), r"state.w: .*float32 \[7\].*needs float64 \[7\]"),
        (lambda t: t["state"].update(extra=np.zeros(1)), r"state.extra: .*has nothing there"),
        (lambda t: t.pop("best"), r"best.w: .*needs nothing there"),
    ],
)
def test_other_shapes_types_and_names_are_refused(store, change, message):
    wanted = tree(0)
    change(wanted)
    with pytest.raises(EquijaxError, match=message):
        store.restore(wanted)
    assert store.steps() == [10, 20, 30]


def test_a_full_disk_leaves_the_earlier_ones_alone(store):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = tree(40, size=1_000_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(CheckpointNotWritten, match="00000040: the checkpoint could not be written: File too large"):
            store.save(40, big, {"progress": {}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in store.directory.iterdir()) == ["00000010", "00000020", "00000030"]
    assert_holds(store.restore(tree(0)), 30)
    store.save(40, tree(40), {"progress": {"step": 40}})
    assert_holds(store.restore(tree(0)), 40)
