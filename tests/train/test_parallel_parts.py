"""What several devices are given: the batches of one device in parts of one shape, and settings that do not fit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.train.batches import Shares
from equijax.train.devices import training_devices
from equijax.train.environment import environment, warn_of_other_environment
from equijax.train.run_directory import refuse_changes
from equijax.train.sharing import digests, shared_task
from tests.train.toy_training import toy_task


@pytest.fixture(scope="module")
def task():
    return toy_task()


def test_parts_hold_every_frame_of_every_batch_once_in_one_shape(task):
    whole, energies = task.train, []
    source = whole.shared(Shares(3, (0, 1, 2)))
    assert [source.plan(epoch) for epoch in range(3)] == [whole.plan(epoch) for epoch in range(3)]
    for indices in source.plan(0):
        parts = source.assemble(indices)
        assert len({jax.tree.structure(part) for part in parts}) == 1
        assert len({str([leaf.shape for leaf in jax.tree.leaves(part)]) for part in parts}) == 1
        labels = [part.labels["energy"] for part in parts]
        energies += [value for label in labels for value in label.value[label.mask]]
    expected = [whole.frames[i].labels["energy"] for i in range(len(whole.frames))]
    np.testing.assert_allclose(sorted(energies), sorted(expected), rtol=1e-6)


def test_parts_are_smaller_than_the_batch_and_a_process_assembles_its_own(task):
    source = task.train.shared(Shares(2, (1,)))
    indices = source.plan(0)[0]
    (part,) = source.assemble(indices)
    assert part.graph.num_nodes < task.train.assemble(indices).graph.num_nodes
    assert part.graph.graph_mask.sum() == len(source.parts(indices)[1])


def test_more_devices_than_structures_leave_parts_empty(task):
    source = task.valid.shared(Shares(8, tuple(range(8))))
    parts = source.assemble(source.plan(0)[0])
    assert [int(part.graph.graph_mask.sum()) for part in parts].count(0) == 4
    assert not any(part.labels["forces"].mask.any() for part in parts[4:])


def test_a_flag_of_a_part_names_its_frame(task):
    source = task.valid.shared(Shares(2, (0, 1)))
    indices = source.plan(0)[0]
    flags = np.ones((2, source.capacity(indices).graphs), bool)
    flags[:, -1] = False  # ghosts do not count
    assert source.first_flagged(indices, flags) is None
    flags[1, 1] = False
    assert source.first_flagged(indices, flags) is source.frames[source.parts(indices)[1][1]]


def test_more_devices_than_there_are_and_one_device():
    with pytest.raises(EquijaxError, match=r"training.devices: is 64, and there are 1 \(cpu\); expected at most 1"):
        training_devices(64)
    assert training_devices("all") is None
    assert training_devices(1) is None


def test_one_device_keeps_the_task(task):
    assert shared_task(task, None) is task


def test_processes_compare_data_and_configuration_but_not_where_the_files_are(task):
    other = dataclasses.replace(task, fingerprints={"/elsewhere/toy.xyz": "0" * 64})
    assert digests(other) == digests(task)
    changed = digests(dataclasses.replace(task, fingerprints={"toy.xyz": "1" * 64}))
    assert {name for name, value in digests(task).items() if changed[name] != value} == {"set of data files"}


def test_the_number_of_devices_may_change_on_resume(tmp_path):
    old, new = ({"training": {"devices": count}} for count in (4, "all"))
    assert refuse_changes(old, new, tmp_path) == ["training.devices: 4 -> all"]
    assert refuse_changes({"seed": 0}, {"seed": 0, "training": {"devices": 1}}, tmp_path) == []
    before = environment()
    del before["devices"]  # as it was written before there were several
    warn_of_other_environment(before, environment())
    with pytest.warns(UserWarning, match="devices 1 -> 4"):
        warn_of_other_environment(before, environment(4))
