"""Plans, padded shapes and the thread that assembles batches ahead."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.graph.batching import BatchBudget
from equijax.train.batches import BatchSource, label_counts, labelled_frame
from tests.train.toy_training import ATOMIC_ENERGIES, molecules


def source(count=11, sizes=(4, 5, 6), shuffle=True, **options):
    frames = [labelled_frame(s, 4.0, (1, 6, 8), ATOMIC_ENERGIES) for s in molecules(count, sizes=sizes)]
    budget = BatchBudget(max_structures=4)
    return BatchSource(frames, budget, 0, shuffle, "float32", **options)


def test_every_frame_once_per_epoch_in_an_order_of_its_own():
    batches = source()
    first, second = batches.plan(0), batches.plan(1)
    assert sorted(i for batch in first for i in batch) == list(range(11))
    assert sorted(i for batch in second for i in batch) == list(range(11))
    assert first != second
    assert batches.plan(0) == first


def test_a_partial_batch_shares_the_shape_of_a_full_one():
    batches = source(sizes=(5,))
    assert [len(b) for b in batches.plan(0)] == [4, 4, 3]
    assert len({batches.capacity(b) for epoch in range(20) for b in batches.plan(epoch)}) == 1


def test_shapes_stay_few_for_frames_of_all_sizes():
    batches = source(count=40, sizes=(1, 2, 3, 4, 5, 6), max_shapes=2)
    assert len(batches.capacities) <= 2
    assert {batches.capacity(b) for b in batches.plan(0)} <= set(batches.capacities)


def test_prefetching_changes_nothing_and_can_start_in_the_middle():
    batches = source()
    plan = batches.plan(3)
    ahead = list(batches.prefetched(plan, start=1))
    assert [(position, list(indices)) for position, indices, _ in ahead] == [(1, plan[1]), (2, plan[2])]
    for _, indices, arrays in ahead:
        jax.tree.map(np.testing.assert_array_equal, arrays, batches.assemble(indices))


def test_leaving_early_ends_the_thread():
    batches = source()
    before = threading.active_count()
    stream = batches.prefetched(batches.plan(0))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_an_error_in_the_thread_arrives(monkeypatch):
    batches = source()
    monkeypatch.setattr(batches, "assemble", lambda indices: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(batches.prefetched(batches.plan(0)))


def test_counts_of_labels_and_no_frames():
    assert label_counts(source().frames) == {"energy": 11, "forces": 11, "stress": 0}
    with pytest.raises(EquijaxError, match="no frames"):
        BatchSource([], BatchBudget(max_structures=1), 0, True, "float32")
