"""Labelled frames on the host, the few padded shapes they share, and batches assembled ahead of the device."""

from __future__ import annotations

import abc
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.graph.batching import BatchBudget, StructureGraph, batch, plan_batches, structure_graph
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.shapes import batch_size, plan_shapes
from equijax.graph.shares import divided
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.labels import LABELS, LabelShape
from equijax.train.loss import LabelledBatch, Labels

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LabelledFrame:
    """A graph and the labels that the frame has, by name, in float64; the energy (eV) is without the isolated atoms."""

    graph: StructureGraph
    structure: Structure
    labels: dict[str, np.ndarray]
    weights: dict[str, float]

    @property
    def num_atoms(self) -> int:
        return self.graph.num_nodes


def labelled_frame(
    structure: Structure,
    cutoff: float,
    elements: Sequence[int],
    atomic_energies: dict[int, float],
    shapes: Mapping[str, LabelShape] = LABELS,
) -> LabelledFrame:
    """Build the graph, subtract Σ E0 from the energy in float64, and read the frame's weights.

    `config_weight` in `info` weighs all labels of the frame, `energy_weight`, `forces_weight` and so on one of them.
    The stress of a frame without a volume is left out. Labels of pairs, [N, N, ...], become those of edges [E, ...].
    """
    given = structure.labels
    labels = {name: np.asarray(given[name], np.float64) for name in shapes if name in given}
    if "energy" in labels:
        isolated = sum(atomic_energies[int(z)] for z in structure.atomic_numbers)
        labels["energy"] = np.asarray(float(labels["energy"]) - isolated)
    if not (all(structure.pbc) and structure.volume > 0):
        labels.pop("stress", None)
    graph = structure_graph(structure, cutoff, elements)
    for name, (per, _) in shapes.items():
        if per == "pair" and name in labels:
            labels[name] = edge_labels(labels[name], graph, structure, name)
    return LabelledFrame(
        graph=graph,
        structure=structure,
        labels=labels,
        weights={name: frame_weight(structure, name) for name in shapes},
    )


def edge_labels(pairs: np.ndarray, graph: StructureGraph, structure: Structure, name: str) -> np.ndarray:
    """Labels [N, N, ...] of (atom, neighbour) at the edges, [E, ...]. Raises EquijaxError where something other than
    zero would be left out: beyond the cutoff, and between an atom and itself."""

    def refused(problem: str, fix: str) -> EquijaxError:
        return located(problem, file=structure.file, frame=structure.frame, key=name, fix=fix)

    if any(structure.pbc):
        raise refused("is per pair and the structure is periodic, where a pair has many images", "use molecules")
    left = np.array(pairs)
    left[graph.receivers, graph.senders] = 0
    for i, j in np.argwhere(left.reshape(*left.shape[:2], -1).any(axis=-1))[:1].tolist():
        if i == j:
            raise refused(f"atom {i} is paired with itself", "set these entries to zero, or use a target per atom")
        distance = np.linalg.norm(structure.positions[i] - structure.positions[j])
        raise refused(
            f"atoms {i} and {j} are {distance:.2f} Å apart, beyond the cutoff of {graph.cutoff:g} Å, and have a label",
            "set model.cutoff above the largest labelled distance, or these entries to zero",
        )
    return np.asarray(pairs[graph.receivers, graph.senders])


def frame_weight(structure: Structure, name: str) -> float:
    """The weight of a label of this frame: its `config_weight` times its `NAME_weight`."""
    return _weight(structure, "config_weight") * _weight(structure, f"{name}_weight")


def _weight(structure: Structure, key: str) -> float:
    value = structure.info.get(key, 1.0)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not np.isfinite(weight) or weight < 0:
        raise located(
            f"is {value!r}",
            file=structure.file,
            frame=structure.frame,
            key=key,
            expected="a number that is not negative",
        )
    return weight


class CountedFrames(abc.ABC):
    """Frames that are not in memory: their number, any one of them, and how many have each label."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> LabelledFrame: ...

    @abc.abstractmethod
    def label_counts(self, names: Iterable[str]) -> dict[str, int]: ...


def label_counts(frames: Sequence[LabelledFrame] | CountedFrames, names: Iterable[str] = LABELS) -> dict[str, int]:
    """How many frames have each label: `{"energy": 1000, "forces": 1000, "stress": 612}`."""
    if isinstance(frames, CountedFrames):
        return frames.label_counts(names)
    return {name: sum(name in frame.labels for frame in frames) for name in names}


def labelled_batch(
    frames: Sequence[LabelledFrame],
    capacity: Capacity,
    dtype: DType,
    shapes: Mapping[str, LabelShape] = LABELS,
) -> LabelledBatch:
    """Pad graphs and labels to `capacity`; ghosts and absent labels have mask False, value and weight 0."""
    rows = {
        "system": (capacity.graphs,),
        "atom": (capacity.nodes,),
        "pair": (capacity.nodes, capacity.neighbors),
    }
    labels = {
        name: Labels(
            value=np.zeros(rows[per] + shape, dtype),
            weight=np.zeros(rows[per], dtype),
            mask=np.zeros(rows[per], bool),
        )
        for name, (per, shape) in shapes.items()
    }
    num_atoms = np.ones(capacity.graphs, dtype)
    row = 0
    for index, frame in enumerate(frames):
        places: dict[str, Any] = {
            "system": index,
            "atom": slice(row, row + frame.num_atoms),
            "pair": (row + frame.graph.receivers, frame.graph.slots),
        }
        row += frame.num_atoms
        num_atoms[index] = frame.num_atoms
        for name, value in frame.labels.items():
            place = places[shapes[name].per]
            labels[name].value[place] = value
            labels[name].weight[place] = frame.weights[name]
            labels[name].mask[place] = True
    return LabelledBatch(batch([frame.graph for frame in frames], capacity, dtype), num_atoms, labels)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Every batch is divided in `count` parts, one per device; `own` are those that this process assembles."""

    count: int
    own: tuple[int, ...]


class BatchSource:
    """The batches of a set of frames: which frames, in what order, padded to which shape.

    All of it is a function of the frames, the budget, the seed and the epoch, so that a resumed run meets the
    same arrays. Shapes come from the padding policy, merged until the epochs planned ahead need at most
    `max_shapes`; `equijax check` plans the same ones. `select` gives the frames of an epoch, otherwise all of them.
    `pack` pads frames to a batch; any objects with a `graph` and a `structure` will do. With `shares` the batches are
    the same, and each is divided in parts of one shape.
    """

    def __init__(
        self,
        frames: Sequence[Any],
        budget: BatchBudget,
        seed: int,
        shuffle: bool,
        dtype: DType,
        max_shapes: int = 4,
        policy: PaddingPolicy | None = None,
        select: Callable[[int], np.ndarray] | None = None,
        pack: Callable[[Sequence[Any], Capacity, DType], Any] = labelled_batch,
        shares: Shares | None = None,
    ) -> None:
        if not frames:
            raise EquijaxError("there are no frames to make batches of")
        self.frames = list(frames)
        self.budget = budget
        self.seed = seed
        self.shuffle = shuffle
        self.dtype = dtype
        self.select = select
        self.max_shapes = max_shapes
        self.policy = policy or PaddingPolicy()
        self.pack = pack
        self.shares = shares
        graphs = [frame.graph for frame in frames]
        self._sizes = np.array([(graph.num_nodes, graph.num_edges, graph.max_neighbors) for graph in graphs])
        self._places = [frame.structure.where for frame in frames]
        self._shapes = plan_shapes(
            self._sizes,
            budget,
            self.policy,
            seed=seed,
            shuffle=shuffle,
            max_shapes=max_shapes,
            places=self._places,
            plan=None if select is None else self.plan,
            shares=self._parts,
        )
        self.capacities = list(self._shapes.capacities)

    def shared(self, shares: Shares) -> BatchSource:
        """The same batches in parts."""
        return BatchSource(
            self.frames,
            self.budget,
            self.seed,
            self.shuffle,
            self.dtype,
            self.max_shapes,
            self.policy,
            self.select,
            self.pack,
            shares,
        )

    @property
    def _parts(self) -> int:
        return 1 if self.shares is None else self.shares.count

    def plan(self, epoch: int) -> list[list[int]]:
        """Frame indices of every batch of an epoch; each frame that belongs to it occurs once."""
        if self.select is None:
            return plan_batches(self._sizes[:, :2], self.budget, self.seed, epoch, self.shuffle, self._places)
        chosen = self.select(epoch)
        places = [self._places[i] for i in chosen]
        plan = plan_batches(self._sizes[chosen, :2], self.budget, self.seed, epoch, self.shuffle, places)
        return [chosen[indices].tolist() for indices in plan]

    def capacity(self, indices: Sequence[int]) -> Capacity:
        """The padded shape of a batch, or of each of its parts."""
        return self._shapes.capacity(*batch_size(self._sizes, indices, self._parts))

    def parts(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """The frames of each part of a batch, which is one part without `shares`."""
        return [indices] if self.shares is None else [*divided(self._sizes, indices, self.shares.count)]

    def assemble(self, indices: Sequence[int]) -> Any:
        """Numpy arrays of one batch in the source's precision; with `shares` a list of those of this process' parts,
        which may have no frames at all."""
        capacity = self.capacity(indices)
        parts = self.parts(indices)
        if self.shares is None:
            return self._packed(parts[0], capacity)
        return [self._packed(parts[k], capacity) for k in self.shares.own]

    def example(self) -> Any:
        """Numpy arrays of the first batch of a run, or of its first part."""
        indices = self.plan(0)[0]
        return self._packed(self.parts(indices)[0], self.capacity(indices))

    def _packed(self, indices: Sequence[int], capacity: Capacity) -> Any:
        return self.pack([self.frames[i] for i in indices], capacity, self.dtype)

    def first_flagged(self, indices: Sequence[int], flags: np.ndarray) -> Any | None:
        """The first frame of a batch whose flag, [G] or [parts, G], is False; None when all are True."""
        for part, row in zip(self.parts(indices), np.atleast_2d(flags), strict=True):
            for index, flag in zip(part, row, strict=False):
                if not flag:
                    return self.frames[index]
        return None

    def prefetched(
        self, plan: Sequence[Sequence[int]], start: int = 0
    ) -> Generator[tuple[int, Sequence[int], Any], None, None]:
        """(position in the plan, frame indices, batch) from `start` on, assembled two ahead by another thread."""
        batches = ((position, plan[position], self.assemble(plan[position])) for position in range(start, len(plan)))
        return ahead(batches, 2, "equijax-batches")


def ahead(items: Iterable[T], count: int, name: str) -> Generator[T, None, None]:
    """`items`, made by a thread called `name` that is at most `count` + 1 of them ahead; its errors are raised here.

    Closing the generator ends the thread and closes `items` when that is a generator.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                if not _put(ready, (item, None), stop):
                    break
                del item
            else:
                _put(ready, None, stop)
        except BaseException as error:
            _put(ready, (None, error), stop)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while (pair := ready.get()) is not None:
            item, error = pair
            if error is not None:
                raise error
            del pair
            yield item
            del item
    finally:
        stop.set()
        thread.join()


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            target.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
