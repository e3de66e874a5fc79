"""A small smooth model that honours the model contract, for tests where the architecture is not the point."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.potential.potential import Potential, parameter_shapes


class ToyModel(nn.Module):
    """Species-dependent pair terms plus a many-body term in the sum over neighbours, C2 at the cutoff."""

    cutoff: float
    channels: int
    statistics: ModelStatistics

    @nn.compact
    def __call__(self, graph: Any, vectors: jax.Array) -> NodeOutputs:
        species = len(self.statistics.atomic_numbers)
        dtype = vectors.dtype
        embedding = self.param("embedding", nn.initializers.normal(1.0), (species, self.channels), dtype)
        readout = self.param("readout", nn.initializers.normal(1.0), (self.channels,), dtype)
        r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        x = jnp.clip(r / self.cutoff, 0, 1)
        envelope = jnp.where(graph.neighbor_mask, (1 - x) ** 3 * (1 + 3 * x + 6 * x**2), 0)  # C2 at x = 1
        a = embedding[graph.species]
        centres = jnp.linspace(0.8, self.cutoff, self.channels).astype(dtype)
        radial = jnp.exp(-2 * (r[..., None] - centres) ** 2) * envelope[..., None]
        density = jnp.sum(radial * a[graph.neighbors], axis=1) / self.statistics.avg_num_neighbors
        repulsion = jnp.sum(200 * jnp.exp(-4 * r) * envelope, axis=1)
        energies = repulsion + jnp.tanh(density * a) @ readout * self.statistics.scale
        has_neighbors = jnp.any(graph.neighbor_mask, axis=1)
        energies = energies + jnp.where(has_neighbors, self.statistics.shift, 0)
        energies = jnp.where(graph.node_mask, energies, 0)
        return NodeOutputs(node_features=density, node_energies=energies)


class ToyConfig(pydantic.BaseModel):
    """The config of ToyModel, as a model file stores it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["toy"] = "toy"
    cutoff: float = 4.0
    channels: int = pydantic.Field(4, ge=1, le=4096)

    is_conservative: ClassVar[bool] = True
    num_hops: ClassVar[int] = 1
    is_o3: ClassVar[bool] = True

    @property
    def feature_irreps(self) -> str:
        return f"{self.channels}x0e"

    def limits(self) -> tuple[str, ...]:
        return ()

    def build(self, statistics: ModelStatistics) -> ToyModel:
        return ToyModel(cutoff=self.cutoff, channels=self.channels, statistics=statistics)


def stretched(name: str) -> Any:
    """A molecule of ASE's collection with distances near the minimum of the toy's pair terms."""
    from ase.build import molecule

    atoms = molecule(name)
    atoms.positions *= 1.8
    return atoms


def toy_potential(
    elements: tuple[int, ...] = (1, 6, 8), cutoff: float = 4.0, dtype: str = "float32", seed: int = 0, channels: int = 4
) -> Potential:
    """A toy with seeded parameters and made-up atomic energies."""
    config = ToyConfig(cutoff=cutoff, channels=channels)
    statistics = ModelStatistics(atomic_numbers=elements, avg_num_neighbors=5.0)
    rng = np.random.Generator(np.random.Philox(seed))
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)
    energies = {z: -13.6 * z**1.5 for z in elements}
    return Potential(config, statistics, energies, params, dtype=dtype)
