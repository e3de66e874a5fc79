"""Old frames among the new ones: which of them an epoch holds, their share of the loss, and their reference level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from equijax.datasets.statistics import reference_energy
from equijax.errors import EquijaxError
from equijax.graph.batching import epoch_order
from equijax.structure import Structure
from equijax.train.batches import BatchSource, LabelledFrame

_STREAM = 2**62
"""Epoch number no run reaches: old frames are drawn from another random stream than the order of an epoch."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Frames of the old data. Those for training are the last of the task's training frames.

    `frames` are those for training, `per_epoch` of them in every epoch; `share` is the part that they are of an
    epoch, and the validation loss on `valid` of the loss by which the best model is chosen. `atomic_energies` {Z: eV}
    are those of these data, `test` their test sets.
    """

    frames: list[LabelledFrame]
    valid: BatchSource
    per_epoch: int
    share: float
    weight: float
    atomic_energies: dict[int, float]
    test: dict[str, list[Structure]]

    def describe(self) -> str:
        return (
            f"replay: {self.per_epoch} of {len(self.frames)} old training frames in every epoch "
            f"({100 * self.share:.0f} % of it), loss times {self.weight:g}; {len(self.valid.frames)} for validation"
        )


def frames_in_epoch(frames_per_epoch: int | None, new: int, old: int) -> int:
    """How many of `old` frames an epoch with `new` new ones holds; EquijaxError for more than there are."""
    if frames_per_epoch is None:
        return min(new, old)
    if frames_per_epoch > old:
        raise EquijaxError(
            f"fine_tuning.replay.frames_per_epoch: is {frames_per_epoch}, and there are {old} training frames to replay"
        )
    return frames_per_epoch


def epoch_selection(new: int, old: int, per_epoch: int, seed: int) -> Callable[[int], np.ndarray]:
    """Epoch -> indices of its frames, of which the first `new` are new and the next `old` are old.

    The old ones come in turn from shuffled lists of all of them, so that each is seen equally often. A function of
    (seed, epoch) alone, as the order within an epoch is.
    """

    def select(epoch: int) -> np.ndarray:
        places = np.arange(epoch * per_epoch, (epoch + 1) * per_epoch)
        orders = {r: epoch_order(old, seed, _STREAM + r) for r in np.unique(places // old).tolist()}
        chosen = [new + int(orders[place // old][place % old]) for place in places.tolist()]
        return np.concatenate([np.arange(new), np.array(chosen, dtype=np.int64)])

    return select


def weighted(frame: LabelledFrame, weight: float) -> LabelledFrame:
    """The frame with all its weights multiplied."""
    return dataclasses.replace(frame, weights={name: weight * value for name, value in frame.weights.items()})


def at_level(structures: Sequence[Structure], own: Mapping[int, float], other: Mapping[int, float]) -> list[Structure]:
    """The structures with their energies moved from the reference level of the E0s `own` to that of `other`."""
    moved = []
    for structure in structures:
        labels: dict[str, Any] = dict(structure.labels)
        if "energy" in labels:
            change = reference_energy(structure, other) - reference_energy(structure, own)
            labels["energy"] = np.float64(labels["energy"] + change)
        moved.append(dataclasses.replace(structure, labels=labels))
    return moved
