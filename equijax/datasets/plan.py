"""What a training run will do with the data: batches, array shapes, padding, compilations, memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from equijax.graph.batching import BatchBudget, plan_batches
from equijax.graph.neighbors import NeighborList
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.shapes import batch_size, plan_shapes
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class Plan:
    """Batches of one part of the data. `visits` counts the batches per shape in one epoch.

    Waste is the fraction of atom rows and edge slots that hold padding; `memory_bytes` a rough estimate of the peak
    of a training step with the largest shape, None when the model does not say how wide it is.
    """

    name: str
    batches_per_epoch: int
    visits: dict[Capacity, int]
    node_waste: float
    edge_waste: float
    memory_bytes: int | None

    @property
    def compilations(self) -> int:
        return len(self.visits)

    def to_dict(self) -> dict[str, Any]:
        return {
            "batches_per_epoch": self.batches_per_epoch,
            "expected_compilations": self.compilations,
            "shapes": [{**dataclasses.asdict(c), "batches": n} for c, n in sorted(self.visits.items())],
            "node_waste": round(self.node_waste, 4),
            "edge_waste": round(self.edge_waste, 4),
            "memory_bytes": self.memory_bytes,
        }

    def text(self) -> str:
        shapes = ", ".join(f"{c.nodes}x{c.neighbors}x{c.graphs} ({n})" for c, n in sorted(self.visits.items()))
        memory = "" if self.memory_bytes is None else f", about {self.memory_bytes / 2**30:.2g} GiB per step"
        return (
            f"{self.name}: {self.batches_per_epoch} batches per epoch, {self.compilations} compilations, padding "
            f"{100 * self.node_waste:.0f} % of atoms and {100 * self.edge_waste:.0f} % of edges{memory}\n"
            f"  shapes atoms x neighbours x graphs (batches): {shapes}"
        )


def sizes_of(structures: Sequence[Structure], edges: Sequence[NeighborList]) -> np.ndarray:
    """(atoms, edges, largest number of neighbours) of every structure, [M, 3]."""
    rows = []
    for structure, one in zip(structures, edges, strict=True):
        degree = np.bincount(one.receivers, minlength=len(structure))
        rows.append((len(structure), len(one), int(degree.max(initial=0))))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def plan_part(
    name: str,
    sizes: np.ndarray,
    budget: BatchBudget,
    *,
    policy: PaddingPolicy | None = None,
    seed: int = 0,
    shuffle: bool = True,
    max_shapes: int = 4,
    model: Any = None,
    itemsize: int = 4,
) -> Plan:
    """Plan one part from its `sizes` [M, 3]. Raises EquijaxError when a structure is above the budget."""
    shapes = plan_shapes(sizes, budget, policy or PaddingPolicy(), seed=seed, shuffle=shuffle, max_shapes=max_shapes)
    visits: Counter[Capacity] = Counter()
    nodes = edges = 0
    batches = plan_batches(sizes[:, :2], budget, seed, 0, shuffle)
    for indices in batches:
        visits[shapes.capacity(*batch_size(sizes, indices))] += 1
    nodes = sum(c.nodes * n for c, n in visits.items())
    edges = sum(c.edges * n for c, n in visits.items())
    # Shapes that the first epoch does not visit are compiled in a later one.
    for capacity in shapes.capacities:
        visits.setdefault(capacity, 0)
    largest = max((c.edges for c in visits), default=0)
    width = edge_width(model)
    return Plan(
        name=name,
        batches_per_epoch=len(batches),
        visits=dict(visits),
        node_waste=1 - float(sizes[:, 0].sum()) / nodes if nodes else 0.0,
        edge_waste=1 - float(sizes[:, 1].sum()) / edges if edges else 0.0,
        memory_bytes=None if width is None else int(largest * width * itemsize),
    )


def edge_width(model: Any) -> int | None:
    """Floats that a training step of an equivariant model keeps per edge slot, to within a factor of about three.

    Per layer: channels x (radial weights, gathered features and messages of all degrees up to lmax), three times for
    the forward pass and two derivatives.
    """
    irreps, lmax = getattr(model, "hidden_irreps", None), getattr(model, "lmax", None)
    layers = getattr(model, "num_layers", None)
    if irreps is None or lmax is None or layers is None:
        return None
    terms = [term.strip().split("x") for term in str(irreps).split("+")]
    channels = max(int(term[0]) for term in terms)
    degree = max(int(term[-1].rstrip("eo")) for term in terms)
    return int(3 * layers * channels * ((lmax + 1) ** 2 + (degree + 1) ** 2))
