"""Batches of training frames that stay on the disk: read a few pieces of shards at a time, ahead of the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from equijax.datasets.shards import FrameBlock, Shards
from equijax.datasets.stream_order import EpochPlan, cut, oversized, plan_epoch, refuse_oversized
from equijax.graph.batching import BatchBudget
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.shapes import batch_size, plan_shapes
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.batches import CountedFrames, LabelledFrame, ahead, labelled_batch, labelled_frame


@dataclasses.dataclass(frozen=True)
class StreamedFrames(CountedFrames):
    """The training frames of shards, by index; each is read and given its graph when it is asked for.

    `numbers` [T] are their numbers in the shards, `labels` how many have each label.
    """

    shards: Shards
    numbers: np.ndarray
    labels: Mapping[str, int]
    cutoff: float
    elements: tuple[int, ...]
    atomic_energies: dict[int, float]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> LabelledFrame:
        return self.labelled(self.shards.structures([int(self.numbers[index])])[0])

    def labelled(self, structure: Structure) -> LabelledFrame:
        """The frame with its graph, and without ΣE0 in its energy."""
        return labelled_frame(structure, self.cutoff, self.elements, self.atomic_energies)

    def label_counts(self, names: Iterable[str]) -> dict[str, int]:
        return {name: self.labels.get(name, 0) for name in names}


class Window:
    """Frames of a few pieces, in memory as arrays; their indices are those of `frames`."""

    def __init__(self, frames: StreamedFrames, bounds: np.ndarray, pieces: Sequence[int]) -> None:
        self._frames = frames
        self._blocks: list[tuple[int, int, FrameBlock, np.ndarray]] = []
        for piece in sorted(pieces):
            first, end = int(bounds[piece]), int(bounds[piece + 1])
            start = int(frames.numbers[first])
            block = frames.shards.read(start, int(frames.numbers[end - 1]) + 1)
            self._blocks.append((first, start, block, block.starts()))
        self._firsts = np.array([first for first, *_ in self._blocks])

    def __getitem__(self, index: int) -> LabelledFrame:
        return self._frames.labelled(self.structure(index))

    def structure(self, index: int) -> Structure:
        _, start, block, starts = self._blocks[int(np.searchsorted(self._firsts, index, side="right")) - 1]
        row = int(self._frames.numbers[index]) - start
        return block.structure(row, int(starts[row]))


class StreamedSource:
    """The batches of frames in shards: what `BatchSource` is for frames in memory.

    The order of an epoch, and with it every array, is a function of the frames, the budget, the seed and the epoch.
    `counts` [T, 4] are those of `neighbor_counts` for the training frames. In memory are three windows of frames (see
    `stream_order`): the one in use, and two read ahead; besides them 24 bytes per training frame.
    """

    def __init__(
        self,
        frames: StreamedFrames,
        counts: np.ndarray,
        budget: BatchBudget,
        seed: int,
        dtype: DType,
        max_shapes: int = 4,
    ) -> None:
        self.frames = frames
        self.budget = budget
        self.seed = seed
        self.dtype = dtype
        self._sizes = counts[:, :3]
        self._bounds = cut(frames.numbers, frames.shards.firsts)
        large = oversized(self._sizes, budget)[:1].tolist()
        refuse_oversized(
            self._sizes, budget, [frames.shards.structures([int(frames.numbers[i])])[0].where for i in large]
        )
        # One epoch of a dataset of this size has batches enough to choose shapes by.
        epochs = max(1, min(10, 20_000 // len(self.plan(0))))
        self._shapes = plan_shapes(
            self._sizes, budget, PaddingPolicy(), seed=seed, max_shapes=max_shapes, epochs=epochs, plan=self.plan
        )
        self.capacities = list(self._shapes.capacities)

    def plan(self, epoch: int) -> EpochPlan:
        """Frame indices of every batch of an epoch; each frame occurs once."""
        return plan_epoch(self._bounds, self._sizes[:, :2], self.budget, self.seed, epoch)

    def capacity(self, indices: Sequence[int]) -> Capacity:
        """The padded shape of a batch."""
        return self._shapes.capacity(*batch_size(self._sizes, indices))

    def assemble(self, indices: Sequence[int]) -> Any:
        """Numpy arrays of one batch in the source's precision, its frames read one by one."""
        return self._pack(indices, self.frames)

    def example(self) -> Any:
        """Numpy arrays of the first batch of a run."""
        return self.assemble(self.plan(0)[0])

    def _pack(self, indices: Sequence[int], frames: Any) -> Any:
        return labelled_batch([frames[i] for i in indices], self.capacity(indices), self.dtype)

    def prefetched(
        self, plan: Sequence[Sequence[int]], start: int = 0
    ) -> Generator[tuple[int, Sequence[int], Any], None, None]:
        """(position in the plan, frame indices, batch) from `start` on, assembled two ahead by another thread.

        A further thread reads the next window while the batches of one are assembled.
        """
        assert isinstance(plan, EpochPlan)
        return ahead(self._batches(plan, start), 2, "equijax-batches")

    def windows(self, plan: EpochPlan, first: int = 0) -> Generator[Window, None, None]:
        """The windows of an epoch from number `first` on, read ahead by a thread."""
        windows = (Window(self.frames, self._bounds, pieces.tolist()) for pieces in plan.pieces[first:])
        return ahead(windows, 1, "equijax-shards")

    def _batches(self, plan: EpochPlan, start: int) -> Iterator[tuple[int, Sequence[int], Any]]:
        first = int(np.searchsorted(plan.windows, start, side="right")) - 1
        if start >= len(plan):
            return
        reading = self.windows(plan, first)
        try:
            for number, window in enumerate(reading, first):
                for position in range(max(start, int(plan.windows[number])), int(plan.windows[number + 1])):
                    yield position, plan[position], self._pack(plan[position], window)
        finally:
            reading.close()
