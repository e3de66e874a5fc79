"""Energies and forces near an anchor, a structure at which the base model was evaluated (arXiv:2412.18633).

With the surrogate S(R; H_ref) of `equijax.models.boost`, u = R - R_ref and forces F_S = -∂S/∂R,

    E(R) = E_ref + S(R) - S(R_ref) - c · u,      c = F_ref - F_S(R_ref),

so that energy and forces are those of the base model at R = R_ref: beyond the paper, the error that the surrogate's
forces have there is known, and is taken away as a constant force until the next anchor.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from equijax.errors import EquijaxError
from equijax.irreps.irreps import parse_irreps
from equijax.models.boost import Boost, BoostConfig, BoostContext, Edges, FeatureStatistics
from equijax.potential.derivatives import position_gradient
from equijax.potential.potential import Potential
from equijax.precision import DType

Array = Any
Params = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """A trained surrogate of one base model, whose file has the sha256 `base` of its parameters.

    `interval` is the largest number of steps between two evaluations of the base model that it was trained for,
    `timestep_fs` their length; `elements` and `feature_irreps` are those of the base model.
    """

    config: BoostConfig
    elements: tuple[int, ...]
    feature_irreps: str
    statistics: FeatureStatistics
    params: Mapping[str, Any]
    base: str
    interval: int
    timestep_fs: float
    dtype: DType = "float32"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def module(self) -> Boost:
        return Boost(self.config, self.feature_irreps, len(self.elements))

    @property
    def num_features(self) -> int:
        return parse_irreps(self.feature_irreps).dim


def check_is_base(potential: Potential, config: BoostConfig) -> None:
    """Raise EquijaxError for a potential that has no surrogates of this config."""
    if not potential.has_energy or not potential.is_conservative:
        raise EquijaxError("a surrogate needs a base model with energies whose gradient are its forces")
    potential.refuse_dispersion("surrogates")
    if potential.committee is not None:
        raise EquijaxError("a surrogate needs one base model; this is a committee, whose members have features each")
    irreps = {str(irrep) for _, irrep in parse_irreps(potential.model_config.feature_irreps)}
    for name in ("0e", "1o")[: config.reference_lmax + 1]:
        if name not in irreps:
            raise EquijaxError(
                f"the features {potential.model_config.feature_irreps} of the base model have no {name}, which it "
                f"reads with reference_lmax {config.reference_lmax}"
            )
    if config.cutoff > potential.cutoff:
        raise EquijaxError(f"cutoff of the surrogate is {config.cutoff:g} Å; expected at most {potential.cutoff:g} Å")


def context_of(
    module: Boost, params: Params, features: jax.Array, species: jax.Array, statistics: FeatureStatistics
) -> BoostContext:
    """What the surrogate knows of a reference with `features` [N, F] of atoms of `species` [N]."""
    context: Any = module.apply({"params": params}, features, species, statistics, method="context")
    return context


def surrogate_energies(
    module: Boost, params: Params, context: BoostContext, edges: Edges, vectors: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """S_i [N] eV and -∂S/∂R [N, 3] eV/Å for edge vectors [N, K, 3] Å. Differentiable again in `params`."""

    def total(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies: Any = module.apply({"params": params}, context, edges, vectors)
        return jnp.sum(energies), energies

    gradient, energies = jax.grad(total, has_aux=True)(vectors)
    gradient = jnp.where(edges.neighbor_mask[..., None], gradient, 0)
    return energies, -position_gradient(gradient, edges)  # type: ignore[arg-type]  # three fields of a graph


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Anchor:
    """B replicas of N atoms where the base model was last evaluated. `positions` [B, N, 3] Å and `energy` [B] eV,
    float64, `correction` [B, N, 3] the force c, eV/Å; `surrogate` [B, N] S_i there; `context` of the B N atoms."""

    positions: Array
    energy: Array
    correction: Array
    surrogate: Array
    context: BoostContext


def anchored(
    context: BoostContext, energies: Array, own: Array, positions: Array, energy: Array, forces: Array
) -> Anchor:
    """The anchor at `positions` [B, N, 3], where the base model gives `energy` [B] and `forces` [B, N, 3], and
    `surrogate_energies` of the same context `energies` [B N] and `own` [B N, 3]."""
    return Anchor(
        positions=positions,
        energy=energy,
        correction=forces - own.reshape(forces.shape).astype(forces.dtype),
        surrogate=energies.reshape(forces.shape[:2]),
        context=context,
    )


def near_anchor(anchor: Anchor, energies: Array, own: Array, positions: Array) -> tuple[jax.Array, jax.Array]:
    """Energy [B] in eV and forces [B, N, 3] in eV/Å at `positions` [B, N, 3], which are not wrapped into a cell.

    `energies` and `own` are those of `surrogate_energies` there, with the context of the anchor.
    """
    # Differences of atoms before the sum: S itself may be large.
    change = jnp.sum((energies.reshape(anchor.surrogate.shape) - anchor.surrogate).astype(positions.dtype), axis=1)
    work = jnp.sum(anchor.correction * (positions - anchor.positions), axis=(1, 2))
    return anchor.energy + change - work, own.reshape(positions.shape).astype(positions.dtype) + anchor.correction
