"""The toy model with faults whose strengths are parameters, so that all broken models share one compiled program."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.graph.padding import PaddingPolicy
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.potential.derivatives import sum_over_graphs
from equijax.potential.potential import Potential
from tests.toy_model import ToyModel, toy_potential

FAULTS = (
    "origin",
    "direction",
    "handed",
    "size",
    "jump",
    "kink",
    "hole",
    "wells",
    "company",
    "alone",
    "rounding",
    "nan",
)


class BrokenModel(nn.Module):
    """ToyModel and one term per fault."""

    cutoff: float
    statistics: ModelStatistics

    @nn.compact
    def __call__(self, graph: Any, vectors: jax.Array) -> NodeOutputs:
        toy = ToyModel(self.cutoff, 4, self.statistics, name="toy")(graph, vectors)
        strength = dict(zip(FAULTS, self.param("faults", nn.initializers.zeros, (len(FAULTS),)), strict=True))
        mask = graph.neighbor_mask
        r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        x = jnp.clip(r / self.cutoff, 0, 1)
        envelope = jnp.where(mask, (1 - x) ** 3 * (1 + 3 * x + 6 * x**2), 0)
        per_graph = sum_over_graphs(toy.node_energies, graph)[graph.node_graph]
        axes = jnp.sum(envelope[..., None] * vectors, axis=1)
        turns = jnp.cross(axes, jnp.sum((envelope * r**2)[..., None] * vectors, axis=1))
        heavy = jnp.sum((envelope * graph.species[graph.neighbors])[..., None] * vectors, axis=1)
        terms = {
            "origin": 0.01 * jnp.tanh(graph.positions[:, 0]),
            "direction": 0.1 * jnp.sum(envelope * vectors[..., 0] ** 2, axis=1),
            "handed": 0.1 * jnp.tanh(jnp.sum(turns * heavy, axis=1)),
            "size": 1e-3 * jnp.sin(per_graph),
            "jump": 1e-3 * jnp.sum(mask * jnp.exp(-r), axis=1),
            "kink": 0.1 * jnp.sum(mask * (1 - x) ** 2, axis=1),
            "hole": -600 * jnp.sum(envelope * jnp.exp(-4 * r), axis=1),
            "wells": 2 * jnp.sum(envelope * jnp.sin(9 * r), axis=1),
            "company": 1e-3 * jnp.sin(jnp.sum(toy.node_energies)) * jnp.sum(envelope, axis=1),
            "alone": 0.1,
            # In float32 the small part is lost in the sum; a constant instead of 3e5 would be simplified away.
            "rounding": (jnp.sum(envelope, axis=1) + strength["rounding"] * 3e5) - strength["rounding"] * 3e5,
            "nan": jnp.where(jnp.sum(envelope, axis=1) > 1e-3, jnp.nan, 0),
        }
        extra = sum(jnp.where(strength[name] > 0, strength[name] * term, 0) for name, term in terms.items())
        energies = jnp.where(graph.node_mask, toy.node_energies + extra, 0)
        return dataclasses.replace(toy, node_energies=energies)


class BrokenConfig(pydantic.BaseModel):
    """Claims what ToyConfig claims, and one layer."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["broken"] = "broken"
    cutoff: float = 4.0
    num_layers: int = 1

    is_conservative: ClassVar[bool] = True
    is_o3: ClassVar[bool] = True
    feature_irreps: ClassVar[str] = "4x0e"

    def limits(self) -> tuple[str, ...]:
        return ()

    def build(self, statistics: ModelStatistics) -> BrokenModel:
        return BrokenModel(self.cutoff, statistics)


class WrongForces(nn.Module):
    """Forces along the edges that are not the gradient of the energy, though the config says they are."""

    toy: ToyModel

    def __call__(self, graph: Any, vectors: jax.Array) -> NodeOutputs:
        outputs = self.toy(graph, vectors)
        pull = jnp.where(graph.neighbor_mask, jnp.exp(-jnp.sum(vectors**2, axis=-1)), 0)
        return dataclasses.replace(outputs, node_forces=jnp.sum(pull[..., None] * vectors, axis=1))


class WrongForcesConfig(BrokenConfig):
    def build(self, statistics: ModelStatistics) -> WrongForces:  # type: ignore[override]
        return WrongForces(ToyModel(self.cutoff, 4, statistics))


def sound() -> Potential:
    """BrokenModel without a fault."""
    toy = toy_potential()
    params = {"toy": toy.params, "faults": np.zeros(len(FAULTS), np.float32)}
    return Potential(BrokenConfig(), toy.statistics, toy.atomic_energies, params)


def broken(healthy: Potential, fault: str) -> Potential:
    """The same with a fault; its evaluators share the compiled programs of `healthy`."""
    faults = np.array([name == fault for name in FAULTS], np.float32)
    potential = dataclasses.replace(healthy, params={**healthy.params, "faults": faults})
    for dtype in ("float32", "float64"):
        evaluator = copy.copy(healthy.evaluator(dtype))
        evaluator.potential = potential
        evaluator._params = {**evaluator._params, "faults": faults.astype(dtype)}
        potential._evaluators[dtype, PaddingPolicy()] = evaluator
    return potential
