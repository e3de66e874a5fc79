"""The order of an epoch over shards: every frame once, few pieces at a time, from (seed, epoch) alone."""

import numpy as np
import pytest

from equijax.datasets.stream_order import PIECES, WINDOW, cut, oversized, plan_epoch, refuse_oversized
from equijax.errors import EquijaxError
from equijax.graph.batching import BatchBudget, plan_batches

FIRST_FRAMES = [1174, 442, 1181, 1182, 980, 340, 1187, 511]
SHARDS = np.cumsum([0, 300, 300, 300, 17, 300])


def sizes_of(count, seed=0):
    return np.random.default_rng(seed).integers(1, 40, size=(count, 2))


def planned(numbers, seed=3, epoch=5, **budget):
    bounds = cut(numbers, SHARDS)
    sizes = sizes_of(len(numbers))
    return plan_epoch(bounds, sizes, BatchBudget(**(budget or {"max_structures": 4})), seed, epoch), bounds, sizes


@pytest.mark.parametrize("budget", [{"max_structures": 7}, {"max_atoms": 90}, {"max_structures": 5, "max_edges": 80}])
@pytest.mark.parametrize("left_out", [0, 200])
def test_no_frame_is_lost_or_repeated(budget, left_out):
    numbers = np.sort(np.random.default_rng(1).permutation(SHARDS[-1])[left_out:])
    for seed, epoch in ((0, 0), (0, 1), (7, 300)):
        plan, *_ = planned(numbers, seed, epoch, **budget)
        frames = [index for batch in plan for index in batch]
        assert sorted(frames) == list(range(len(numbers)))
        assert len(plan) == sum(1 for _ in plan)


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    numbers = np.arange(SHARDS[-1])
    plan = planned(numbers)[0]
    assert list(plan) == list(planned(numbers)[0])
    assert list(plan) != list(planned(numbers, epoch=6)[0])
    assert list(plan) != list(planned(numbers, seed=4)[0])
    # Fixed for ever: checkpoints of earlier versions rely on it.
    assert [index for batch in plan for index in batch][:8] == FIRST_FRAMES


def test_a_window_holds_an_eighth_of_a_shard_from_many_places():
    numbers = np.arange(SHARDS[-1])
    plan, bounds, _ = planned(numbers)
    assert np.diff(bounds).max() <= -(-300 // PIECES)
    for number, pieces in enumerate(plan.pieces):
        inside = {int(i) for piece in pieces for i in range(bounds[piece], bounds[piece + 1])}
        batches = range(int(plan.windows[number]), int(plan.windows[number + 1]))
        assert {index for position in batches for index in plan[position]} == inside
        assert len(pieces) <= WINDOW
    first = plan.order[: len(numbers) // 8]
    assert np.unique(np.searchsorted(SHARDS, first, side="right")).size >= 3


@pytest.mark.parametrize("budget", [{"max_structures": 3}, {"max_atoms": 60}, {"max_structures": 5, "max_edges": 80}])
def test_batches_are_cut_as_those_of_data_in_memory(budget):
    plan, _, sizes = planned(np.arange(SHARDS[-1]), **budget)
    limits = BatchBudget(**budget)
    for number in range(len(plan.pieces)):
        first, end = int(plan.windows[number]), int(plan.windows[number + 1])
        ours = [plan[position] for position in range(first, end)]
        frames = np.array([index for batch in ours for index in batch])
        theirs = plan_batches(sizes[frames], limits, shuffle=False)
        assert ours == [frames[batch].tolist() for batch in theirs]


def test_frames_above_the_budget():
    sizes = np.array([[3, 10], [50, 10], [3, 10]])
    with pytest.raises(EquijaxError, match=r"a.xyz frame 9: 50 atoms .* max_atoms: 50"):
        refuse_oversized(sizes, BatchBudget(max_atoms=20), ["a.xyz frame 9"])
    alone = BatchBudget(max_atoms=20, oversized="alone")
    refuse_oversized(sizes, alone, [])
    assert oversized(sizes, alone).tolist() == [1]
    plan = plan_epoch(np.array([0, 3]), sizes, alone, 0, 0)
    assert [1] in list(plan)
