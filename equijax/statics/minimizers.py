"""FIRE and L-BFGS for a batch of structures at once, one independent minimisation per graph, inside one program.

A minimizer is asked with the objective at the point where it sent the batch, and answers with the next step. Its state
is a pytree of arrays per atom and per graph, so that structures enter and leave a batch with their own rows of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.statics.coordinates import Coordinates, Frame, Objective

Array = Any  # jax.Array inside jit, numpy on the host

MAX_STRAIN = 0.05
"""Largest change of a component of L in one step."""


def limited(step: Coordinates, graph: AtomGraph, frame: Frame, max_move: jax.Array) -> Coordinates:
    """The step, shortened so that no atom moves by more than `max_move` [G] Å and no strain by more than 5 %."""
    moves = jnp.sqrt(jnp.sum(step.atoms**2, axis=1))
    farthest = jax.ops.segment_max(moves, graph.node_graph, graph.num_graphs, indices_are_sorted=True)
    strain = jnp.max(jnp.abs(step.cells), axis=(1, 2)) / frame.scale
    tiny = jnp.finfo(moves.dtype).tiny
    factor = jnp.minimum(max_move / jnp.maximum(farthest, tiny), MAX_STRAIN / jnp.maximum(strain, tiny))
    return step.scaled(jnp.minimum(factor, 1), graph)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FireState:
    """`velocity`, time step [G], mixing [G], steps since the velocity was last stopped [G] (float)."""

    velocity: Coordinates
    timestep: Array
    mixing: Array
    downhill: Array


@dataclasses.dataclass(frozen=True)
class Fire:
    """Damped dynamics that stops when it goes uphill (Bitzek et al., PRL 97, 170201, 2006), with ASE's parameters.

    It looks at forces alone, never at energies, and converges on rough or noisy surfaces, in more steps than L-BFGS.
    """

    max_move: float
    start_timestep: float = 0.1
    max_timestep: float = 1.0
    start_mixing: float = 0.1

    def start(self, atoms: int, graphs: int, xp: Any = jnp) -> FireState:
        """The state of `graphs` structures with so many atoms together."""
        rest = Coordinates(xp.zeros((atoms, 3)), xp.zeros((graphs, 3, 3)))
        ones = xp.ones(graphs)
        return FireState(rest, self.start_timestep * ones, self.start_mixing * ones, xp.zeros(graphs))

    def step(
        self, state: FireState, at: Objective, graph: AtomGraph, frame: Frame
    ) -> tuple[Coordinates, FireState, jax.Array]:
        """The next step, the new state, and [G] whether the structure is stuck: never."""
        force = Coordinates(-at.gradient.atoms, -at.gradient.cells)
        speed = jnp.sqrt(state.velocity.dot(state.velocity, graph))
        strength = jnp.sqrt(force.dot(force, graph))
        downhill = state.velocity.dot(force, graph) > 0
        ratio = state.mixing * speed / jnp.maximum(strength, jnp.finfo(speed.dtype).tiny)
        mixed = state.velocity.scaled(1 - state.mixing, graph) + force.scaled(ratio, graph)
        velocity = mixed.scaled(jnp.where(downhill, 1.0, 0.0), graph)
        faster = downhill & (state.downhill > 5)
        started = speed > 0
        timestep = jnp.where(faster, jnp.minimum(1.1 * state.timestep, self.max_timestep), state.timestep)
        timestep = jnp.where(started & ~downhill, 0.5 * timestep, timestep)
        mixing = jnp.where(faster, 0.99 * state.mixing, jnp.where(downhill, state.mixing, self.start_mixing))
        velocity = velocity + force.scaled(timestep, graph)
        step = limited(velocity.scaled(timestep, graph), graph, frame, jnp.full_like(timestep, self.max_move))
        new = FireState(velocity, timestep, mixing, jnp.where(downhill, state.downhill + 1, 0.0))
        return step, new, jnp.zeros_like(downhill)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LBFGSState:
    """The last accepted point and the step tried from it, with the pairs of steps and changes of the gradient.

    `moves`, `changes`: coordinates with a leading axis of pairs, the newest first; `curvature` [pairs, G] 1 / s·y,
    0 where there is no pair; `scale` [G] Å²/eV of the first guess; `value` [G], inf before the first evaluation;
    `gradient` of the last accepted point; `tried` step; `reach` [G] Å, the limit on a step; `failures` [G] steps
    refused in a row (float).
    """

    moves: Coordinates
    changes: Coordinates
    curvature: Array
    scale: Array
    value: Array
    gradient: Coordinates
    tried: Coordinates
    reach: Array
    failures: Array


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS (Nocedal and Wright, ch. 7) with a limit on the step and descent guaranteed.

    A step is accepted when the energy falls by a 1e-4 of what the slope promises, up to rounding; a refused one is
    shortened by quadratic interpolation from the same point. After five refusals the pairs are forgotten and the
    step goes along the forces; after ten more the structure is stuck: its energy and forces contradict each other
    within the precision.
    """

    max_move: float
    pairs: int = 16
    first_scale: float = 1 / 70
    """Å²/eV, as in ASE: the inverse of a stiff bond."""

    def start(self, atoms: int, graphs: int, xp: Any = jnp) -> LBFGSState:
        """The state of `graphs` structures with so many atoms together."""

        def zeros(*leading: int) -> Coordinates:
            return Coordinates(xp.zeros((*leading, atoms, 3)), xp.zeros((*leading, graphs, 3, 3)))

        return LBFGSState(
            moves=zeros(self.pairs),
            changes=zeros(self.pairs),
            curvature=xp.zeros((self.pairs, graphs)),
            scale=xp.full(graphs, self.first_scale),
            value=xp.full(graphs, xp.inf),
            gradient=zeros(),
            tried=zeros(),
            reach=xp.full(graphs, self.max_move),
            failures=xp.zeros(graphs),
        )

    def step(
        self, state: LBFGSState, at: Objective, graph: AtomGraph, frame: Frame
    ) -> tuple[Coordinates, LBFGSState, jax.Array]:
        """The next step from where the batch is now, the new state, and [G] whether the structure is stuck."""
        first = jnp.isinf(state.value)
        slope = state.gradient.dot(state.tried, graph)
        rise = jnp.where(first, 0.0, at.value - jnp.where(first, 0.0, state.value))
        accepted = first | (rise <= 1e-4 * slope + at.noise)

        learned = self._learn(state, at, accepted & ~first, graph)
        # Refused: the minimum of the parabola through value and slope at the start and value at the end.
        ratio = -slope / jnp.maximum(2 * (rise - slope), jnp.finfo(rise.dtype).tiny)
        shorter = state.tried.scaled(jnp.clip(ratio, 0.1, 0.5), graph)
        failures = jnp.where(accepted, 0.0, state.failures + 1)
        forget = failures == 5
        learned = dataclasses.replace(
            learned,
            curvature=jnp.where(forget, 0.0, learned.curvature),
            scale=jnp.where(forget, self.first_scale, learned.scale),
        )
        gradient = at.gradient.where(accepted, state.gradient, graph)
        # The direction of an accepted point, or of the old one when the pairs were forgotten.
        direction = self._direction(learned, gradient, graph)
        reach = jnp.where(accepted, jnp.minimum(2 * state.reach, self.max_move), 0.5 * state.reach)
        fresh = limited(direction, graph, frame, reach)
        tried = fresh.where(accepted | forget, shorter, graph)
        # From a refused point the way leads back first.
        step = tried - state.tried.scaled(jnp.where(accepted, 0.0, 1.0), graph)
        new = dataclasses.replace(
            learned,
            value=jnp.where(accepted, at.value, state.value),
            gradient=gradient,
            tried=tried,
            reach=reach,
            failures=failures,
        )
        return step, new, failures > 15

    def _learn(self, state: LBFGSState, at: Objective, chosen: jax.Array, graph: AtomGraph) -> LBFGSState:
        """Add the pair of the step just made, for the chosen graphs with a positive curvature along it."""
        change = at.gradient - state.gradient
        product, square = state.tried.dot(change, graph), change.dot(change, graph)
        length = state.tried.dot(state.tried, graph)
        chosen = chosen & (product > 1e-8 * jnp.sqrt(length * square)) & (product > 0)
        safe = jnp.where(chosen, product, 1.0)

        def pushed(old: Coordinates, newest: Coordinates) -> Coordinates:
            shifted = jax.tree.map(lambda many, one: jnp.concatenate([one[None], many[:-1]]), old, newest)
            return jax.vmap(lambda a, b: a.where(chosen, b, graph))(shifted, old)

        curvature = jnp.concatenate([(1 / safe)[None], state.curvature[:-1]])
        return dataclasses.replace(
            state,
            moves=pushed(state.moves, state.tried),
            changes=pushed(state.changes, change),
            curvature=jnp.where(chosen, curvature, state.curvature),
            scale=jnp.where(chosen, safe / jnp.where(chosen, square, 1.0), state.scale),
        )

    def _direction(self, state: LBFGSState, gradient: Coordinates, graph: AtomGraph) -> Coordinates:
        """-H g by the two loops; along -g where rounding made that an ascent."""
        pairs = (state.moves, state.changes, state.curvature)

        def newest_first(vector: Coordinates, pair: Any) -> tuple[Coordinates, jax.Array]:
            move, change, curvature = pair
            weight = curvature * move.dot(vector, graph)
            return vector - change.scaled(weight, graph), weight

        vector, weights = jax.lax.scan(newest_first, gradient, pairs)
        vector = vector.scaled(state.scale, graph)

        def oldest_first(vector: Coordinates, pair: Any) -> tuple[Coordinates, None]:
            (move, change, curvature), weight = pair
            return vector + move.scaled(weight - curvature * change.dot(vector, graph), graph), None

        vector, _ = jax.lax.scan(oldest_first, vector, (pairs, weights), reverse=True)
        descends = vector.dot(gradient, graph) > 0
        steepest = gradient.scaled(jnp.full_like(state.scale, self.first_scale), graph)
        return vector.where(descends, steepest, graph).scaled(jnp.full_like(state.scale, -1.0), graph)
