"""Potentials with known answers, run through the same code as any model: springs between near neighbours, and Morse."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.potential.potential import Potential


class PairModel(nn.Module):
    """Half of each pair's energy to each atom; see `PairConfig`."""

    config: PairConfig
    statistics: ModelStatistics

    @nn.compact
    def __call__(self, graph: Any, vectors: jax.Array) -> NodeOutputs:
        config = self.config
        strength = self.param("strength", nn.initializers.ones, (), vectors.dtype)
        r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        if config.kind == "springs":
            pair = 0.5 * strength * (r - config.length) ** 2
        else:
            x = jnp.clip(r / config.cutoff, 0, 1)
            envelope = (1 - x) ** 3 * (1 + 3 * x + 6 * x**2)
            pair = strength * ((1 - jnp.exp(-config.steepness * (r - config.length))) ** 2 - 1) * envelope
        energies = 0.5 * jnp.sum(jnp.where(graph.neighbor_mask, pair, 0), axis=1)
        return NodeOutputs(node_features=energies[:, None], node_energies=energies)


class PairConfig(pydantic.BaseModel):
    """springs: k/2 (r - length)² for pairs within the cutoff, which has to lie between two shells, k eV/Å².
    morse: depth eV at `length` Å, smooth at the cutoff."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["pair"] = "pair"
    kind: Literal["springs", "morse"] = "springs"
    cutoff: float = 1.2
    length: float = 1.0
    steepness: float = 1.5

    is_conservative: ClassVar[bool] = True
    is_o3: ClassVar[bool] = True

    def limits(self) -> tuple[str, ...]:
        return ()

    def build(self, statistics: ModelStatistics) -> PairModel:
        return PairModel(self, statistics)


def pair_potential(strength: float = 1.0, element: int = 18, **config: Any) -> Potential:
    """One element, no energy of its own, float64; `strength` is k (eV/Å²) or the depth (eV)."""
    return Potential(
        PairConfig(**config),
        ModelStatistics(atomic_numbers=(element,), avg_num_neighbors=12.0),
        {element: 0.0},
        {"strength": np.asarray(strength)},
        dtype="float64",
    )
