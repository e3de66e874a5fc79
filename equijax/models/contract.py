"""What a model is: a frozen config that builds a module from statistics of the data; graph in, node outputs out."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class ModelStatistics:
    """Numbers of the training data that a model needs, fixed when it is built and stored with its weights.

    `atomic_numbers`: elements, ascending; the species index is the position. `avg_num_neighbors`: mean in-degree
    over atoms with a neighbour. Per-atom energy = `scale` * output + `shift`, in eV.
    """

    atomic_numbers: tuple[int, ...]
    avg_num_neighbors: float
    scale: float = 1.0
    shift: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NodeOutputs:
    """Per-atom results. `node_energies` [N] eV, without E0, exactly zero on padding; `node_features` [N, F],
    the features of all layers, flat in e3nn's `mul_ir` order; `node_forces` [N, 3] eV/Å only from models that
    predict forces directly, zero on padding. Without them forces are minus the gradient of the energy. `targets`, of
    models with target heads, holds irreps by name, zero on padding: [G, dim] per system, [N, dim] per atom,
    [N, K, dim] per pair."""

    node_energies: jax.Array
    node_features: jax.Array
    node_forces: jax.Array | None = None
    targets: dict[str, jax.Array] | None = None


class ModelConfig(Protocol):
    """A row of `MODELS`: a frozen pydantic model with these members."""

    @property
    def name(self) -> str: ...

    @property
    def cutoff(self) -> float:
        """Å; no interaction reaches further in one layer."""

    @property
    def num_hops(self) -> int:
        """Edges that information travels: energies, features and direct forces of an atom depend on the atoms at most
        so many edges away, and on no others."""

    @property
    def is_conservative(self) -> bool:
        """Forces are minus the gradient of the energy; otherwise the model predicts them directly."""

    @property
    def feature_irreps(self) -> str:
        """What `node_features` are, such as 64x0e+64x1o+64x0e, in their order. Without `is_o3` only degrees count."""

    @property
    def is_o3(self) -> bool:
        """Energies and forces respect inversion; otherwise proper rotations only."""

    def limits(self) -> tuple[str, ...]:
        """What the options of this config cannot express or only approximate, one sentence each."""

    def build(self, statistics: ModelStatistics) -> nn.Module:
        """The module; `module.apply({"params": p}, graph, vectors)` gives `NodeOutputs`."""

    def model_dump(self, **options: Any) -> dict[str, Any]: ...
