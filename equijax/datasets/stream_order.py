"""The order in which an epoch goes through shards: a function of (seed, epoch) that never needs more than a few pieces
of shards at a time.

Every shard is cut into pieces of consecutive frames. The pieces of all shards are shuffled, a few of them at a time
make a window, and the frames of a window are shuffled. A window holds an eighth of a shard's frames, taken from up to
32 places of the dataset, and batches are cut within windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import BatchBudget, epoch_order, plan_batches

PIECES = 256
"""Pieces that the largest shard is cut into."""
WINDOW = 32
"""Pieces of a window."""


@dataclasses.dataclass(frozen=True)
class EpochPlan(Sequence[list[int]]):
    """The batches of one epoch, as a sequence of frame indices.

    `order` [T] are all frames in the order of the epoch, `ends` where each batch ends in it, `windows` the first batch
    of every window and the end, `pieces` the pieces of every window.
    """

    order: np.ndarray
    ends: np.ndarray
    windows: np.ndarray
    pieces: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> list[int]:  # type: ignore[override]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        first = int(self.ends[position - 1]) if position else 0
        return [int(index) for index in self.order[first : int(self.ends[position])]]

    def __iter__(self) -> Iterator[list[int]]:
        return (self[position] for position in range(len(self)))


def cut(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Bounds of the pieces: piece k holds the frames `bounds[k]` to `bounds[k + 1]` - 1 of `numbers`.

    `numbers` [T] ascend through the frames of shards that begin at `firsts`; no piece crosses from one shard to
    another or is empty.
    """
    size = -(-int(np.diff(firsts).max()) // PIECES)
    edges = np.searchsorted(numbers, firsts)
    parts = [np.arange(a, b, size) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return np.concatenate([*parts, edges[-1:]]).astype(np.int64)


def plan_epoch(bounds: np.ndarray, sizes: np.ndarray, budget: BatchBudget, seed: int, epoch: int) -> EpochPlan:
    """The order of an epoch over pieces with these `bounds`, in batches within the budget.

    `sizes` [T, 2] are atoms and edges per frame. Every frame occurs once.
    """
    pieces = epoch_order(len(bounds) - 1, seed, epoch)
    windows = [pieces[first : first + WINDOW] for first in range(0, len(pieces), WINDOW)]
    order = np.empty(len(sizes), np.int32 if len(sizes) < 2**31 else np.int64)
    ends: list[np.ndarray] = []
    starts = [0]
    done = 0
    for number, window in enumerate(windows):
        frames = np.concatenate([np.arange(bounds[piece], bounds[piece + 1]) for piece in window.tolist()])
        # Another counter than that of the pieces: a stream of its own for every window.
        words = np.random.Philox(
            key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, number + 1, 0], np.uint64)
        ).random_raw(len(frames))
        frames = frames[np.argsort(words, kind="stable")]
        order[done : done + len(frames)] = frames
        ends.append(done + _cut_batches(sizes[frames], budget))
        starts.append(starts[-1] + len(ends[-1]))
        done += len(frames)
    return EpochPlan(order, np.concatenate(ends), np.array(starts), windows)


def _cut_batches(sizes: np.ndarray, budget: BatchBudget) -> np.ndarray:
    """Where batches end when frames are taken in this order, as `plan_batches` does."""
    atoms, edges = (np.concatenate([[0], np.cumsum(sizes[:, k], dtype=np.int64)]) for k in (0, 1))
    ends: list[int] = []
    first = 0
    while first < len(sizes):
        end = len(sizes) if budget.max_structures is None else min(first + budget.max_structures, len(sizes))
        for total, limit in ((atoms, budget.max_atoms), (edges, budget.max_edges)):
            if limit is not None:
                end = min(end, int(np.searchsorted(total, total[first] + limit, side="right")) - 1)
        first = max(end, first + 1)  # a frame above the budget has a batch of its own
        ends.append(first)
    return np.array(ends, np.int64)


def refuse_oversized(sizes: np.ndarray, budget: BatchBudget, places: Sequence[str]) -> None:
    """EquijaxError for a frame above the budget, unless it may have a batch of its own. `places` name such frames."""
    if budget.oversized == "alone":
        return
    large = oversized(sizes, budget)
    if len(large):
        plan_batches(sizes[large, :2], budget, shuffle=False, places=places)
        raise EquijaxError(f"{places[0]} is larger than a batch may be")


def oversized(sizes: np.ndarray, budget: BatchBudget) -> np.ndarray:
    """Indices of the frames above the budget."""
    above = np.zeros(len(sizes), bool)
    for column, limit in ((0, budget.max_atoms), (1, budget.max_edges)):
        if limit is not None:
            above |= sizes[:, column] > limit
    return np.flatnonzero(above)
