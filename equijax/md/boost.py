"""Dynamics with a surrogate between evaluations of the base model (BoostMD, arXiv:2412.18633)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.md.integrators import Integrator, State
from equijax.md.pair_search import squared_length
from equijax.md.settings import MDSettings
from equijax.md.verlet_list import FILLER, VerletList
from equijax.models.boost import BoostContext, Edges
from equijax.potential.boost import Anchor, Surrogate, anchored, context_of, near_anchor, surrogate_energies
from equijax.potential.derivatives import Prediction
from equijax.potential.potential import Potential
from equijax.precision import DType, numpy_dtype
from equijax.weights.boost_file import check_base
from equijax.weights.model_file import digest, flatten_parameters

Array = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Boost:
    """The base model is evaluated at every step whose number is a multiple of `interval`, the surrogate at the others.

    What the base model corrects, of the energy and by its force in the last kick of a step, is counted as heat, so that
    the conserved energy shows what the integrator does alone. The stress stays that of the last evaluation of the base
    model.
    """

    surrogate: Surrogate
    interval: int

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= self.surrogate.interval:
            raise EquijaxError(
                f"the base model would be evaluated every {self.interval} steps; expected 1 to "
                f"{self.surrogate.interval}, for which the surrogate was trained"
            )

    def check(self, potential: Potential, atoms: Atoms, settings: MDSettings, dtype: DType, has_monitor: bool) -> None:
        """Raise EquijaxError for a run that the surrogate is not made for, warn of one that it has not seen."""
        check_base(self.surrogate, potential)
        if settings.ensemble != "langevin":
            raise EquijaxError(
                f"ensemble is {settings.ensemble}; a boosted run conserves no energy and needs langevin, whose "
                "friction takes up what each evaluation of the base model corrects"
            )
        if dtype != self.surrogate.dtype:
            raise EquijaxError(f"dtype is {dtype}, the surrogate's {self.surrogate.dtype}; expected the same")
        if settings.timestep_fs > self.surrogate.timestep_fs * (1 + 1e-9):
            raise EquijaxError(
                f"timestep_fs is {settings.timestep_fs:g}; the surrogate was trained for up to "
                f"{self.surrogate.timestep_fs:g} fs"
            )
        if has_monitor:
            raise EquijaxError("a boosted run has no monitor: most of its steps have no prediction of the base model")

        formula, temperature = self.surrogate.metadata.get("formula"), self.surrogate.metadata.get("temperature")
        if formula is not None and formula != atoms.get_chemical_formula():
            _warn(f"was trained on {formula}, this is {atoms.get_chemical_formula()}")
        if temperature is not None and settings.hottest > temperature:
            _warn(f"was trained at {temperature:g} K, this run reaches {settings.hottest:g} K")

    def describe(self) -> dict[str, Any]:
        """What a restart must agree with."""
        parameters = flatten_parameters(self.surrogate.params)
        return {"boost_interval": self.interval, "boost": digest(repr(self.surrogate.config), parameters)}

    def first_anchor(self, replicas: int, atoms: int) -> Anchor:
        """Of a state without forces: the first step replaces it."""
        config, dtype = self.surrogate.config, numpy_dtype(self.surrogate.dtype)
        rows, hidden = replicas * atoms, config.hidden
        return Anchor(
            positions=np.zeros((replicas, atoms, 3)),
            energy=np.zeros(replicas),
            correction=np.zeros((replicas, atoms, 3)),
            surrogate=np.zeros((replicas, atoms), dtype),
            context=BoostContext(
                sender=np.zeros((rows, config.num_bessel, config.channels), dtype),
                vectors=np.zeros((rows, 3, config.channels if config.reference_lmax else 0), dtype),
                bias=np.zeros((rows, hidden), dtype),
                readout=np.zeros((rows, hidden), dtype),
            ),
        )

    def forces(
        self,
        base: Callable[[], tuple[State, Array, Prediction]],
        integrator: Integrator,
        state: State,
        candidates: VerletList,
        species: np.ndarray,
        pbc: tuple[bool, bool, bool],
    ) -> tuple[State, Array]:
        """The state with its forces, and the most neighbours that the base model needed."""
        old = state.anchor
        assert old is not None
        module, params = self.surrogate.module, self.surrogate.params
        count = state.positions.shape[0] * state.positions.shape[1]
        edges, vectors = edges_of(candidates, state.positions, state.cell, pbc, self.surrogate.config.cutoff)

        def energies(context: BoostContext) -> tuple[Array, Array]:
            with jax.enable_x64(self.surrogate.dtype == "float64"):
                return surrogate_energies(module, params, context, edges, vectors.astype(self.surrogate.dtype))

        def total(forced: State) -> Array:
            end = integrator.after(forced)
            return end.energy + integrator.kinetic(end.momenta)

        def from_base() -> tuple[State, Array]:
            forced, neighbors, prediction = base()
            energy, forces = near_anchor(old, *energies(old.context), state.positions)
            expected = dataclasses.replace(state, energy=energy, forces=forces)
            heat = jnp.where(state.step > 0, total(forced) - total(expected), 0.0)
            with jax.enable_x64(self.surrogate.dtype == "float64"):
                features = prediction.node_features[:count].astype(self.surrogate.dtype)
                rows = jnp.tile(jnp.asarray(species), state.positions.shape[0])
                context = context_of(module, params, features, rows, self.surrogate.statistics)
            new = anchored(context, *energies(context), state.positions, forced.energy, forced.forces)
            return dataclasses.replace(forced, heat=forced.heat + heat, anchor=new), neighbors.astype(jnp.int32)

        def from_surrogate() -> tuple[State, Array]:
            energy, forces = near_anchor(old, *energies(old.context), state.positions)
            return dataclasses.replace(state, energy=energy, forces=forces), jnp.int32(0)

        return jax.lax.cond(state.step % self.interval == 0, from_base, from_surrogate)


def _warn(what: str) -> None:
    warnings.warn(f"the surrogate {what}; compare with a run of the base model", EquijaxWarning, stacklevel=4)


CONTEXT = "context_"


def anchor_arrays(anchor: Anchor) -> dict[str, np.ndarray]:
    """Every array of an anchor by name, for a restart file."""
    own = {f"anchor_{f.name}": getattr(anchor, f.name) for f in dataclasses.fields(Anchor) if f.name != "context"}
    context = {f"{CONTEXT}{f.name}": getattr(anchor.context, f.name) for f in dataclasses.fields(BoostContext)}
    return {name: np.array(array) for name, array in (own | context).items()}


def anchor_of(arrays: Mapping[str, np.ndarray]) -> Anchor:
    """The anchor that `anchor_arrays` took apart."""
    own = {f.name: arrays[f"anchor_{f.name}"] for f in dataclasses.fields(Anchor) if f.name != "context"}
    context = BoostContext(**{f.name: arrays[f"{CONTEXT}{f.name}"] for f in dataclasses.fields(BoostContext)})
    return Anchor(context=context, **own)


def edges_of(
    candidates: VerletList, positions: Array, cell: Array, pbc: tuple[bool, bool, bool], cutoff: float
) -> tuple[Edges, Array]:
    """All candidates as edges, of which those shorter than `cutoff` count, and their vectors [B N, K', 3] float64.

    Nothing is sorted out: for a surrogate that is cheap, the slots which are left empty cost less.
    """
    replicas, count, width = candidates.senders.shape
    rows = replicas * count
    filled = candidates.senders < count
    senders = jnp.minimum(candidates.senders, count - 1)
    replica = jnp.arange(replicas, dtype=jnp.int32)[:, None, None]
    vectors = positions[:, :, None] - positions[replica, senders]
    if any(pbc):
        vectors -= jnp.einsum("bnka,bac->bnkc", candidates.shifts, cell)
    mask = filled & (squared_length(vectors) < cutoff**2)
    edges = Edges(
        neighbors=(senders + replica * count).reshape(rows, width),
        neighbor_mask=mask.reshape(rows, width),
        reverse=(candidates.reverse + replica * (count * width)).reshape(rows, width),
    )
    return edges, jnp.where(mask[..., None], vectors, FILLER).reshape(rows, width, 3)
