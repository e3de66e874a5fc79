"""The compiled MD loop: integrator, neighbour list, model and stops in one program that is compiled once per room."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.padding import CompileCounter
from equijax.md.boost import Boost
from equijax.md.integrators import Integrator, State, volume
from equijax.md.pair_search import Room, inverse, squared_length
from equijax.md.verlet_list import SKIN, ListMaker, Needs, VerletList
from equijax.nn.receiver_blocks import LOOP_BYTES, blocks_above
from equijax.out_of_memory import memory_errors
from equijax.potential.derivatives import Prediction
from equijax.potential.potential import Potential
from equijax.potential.uncertainty import uncertain_prediction
from equijax.precision import DType, jit, precision

Array = Any

RECORDS = 8
"""Stops per call of the program."""

RUNNING, NEEDS_ROOM, MODEL, NOT_FINITE, FLOWN, HOT, UNCERTAIN = range(7)
"""Why the loop stopped; of several reasons the lowest number counts. After `NEEDS_ROOM` the steps are done again."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Status:
    """`code`: RUNNING or why it stopped; `replica`, `atom` that show it; `value`: temperature in K, or uncertainty."""

    code: Array
    replica: Array
    atom: Array
    value: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """What the log says about a state, [B] each: eV without the isolated atoms, K, eV/Å³, Å³."""

    kinetic: Array
    conserved: Array
    temperature: Array
    pressure: Array
    volume: Array


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Stops a run whose `function` of the prediction, [N] per row of the graph, exceeds `limit`; `name` with a unit
    for the message, as in 'force uncertainty (eV/Å)'. Ghost rows are ignored."""

    function: Callable[[Prediction], Array]
    limit: float
    name: str


class Engine:
    """Runs a potential from stop to stop. `compile_count` says how many programs that took."""

    def __init__(
        self,
        potential: Potential,
        dtype: DType,
        integrator: Integrator,
        atomic_numbers: np.ndarray,
        pbc: tuple[bool, bool, bool],
        replicas: int = 1,
        temperature_limit: float = 1e4,
        monitor: Monitor | None = None,
        skin: float = SKIN,
        boost: Boost | None = None,
    ) -> None:
        # With the base model at every step there is nothing for a surrogate to do.
        self.boost = None if boost is None or boost.interval == 1 else boost
        self.potential, self.dtype, self.integrator, self.monitor = potential, dtype, integrator, monitor
        self.atomic_numbers, self.pbc, self.replicas, self.skin = atomic_numbers, pbc, replicas, skin
        self.temperature_limit = temperature_limit
        table = {z: index for index, z in enumerate(potential.elements)}
        self._species = np.array([table[int(z)] for z in atomic_numbers], np.int32)
        self._counter = CompileCounter()
        self._programs: dict[Room, Any] = {}
        with precision(dtype, potential.matmul_precision):
            cast = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), dict(potential.params))
            self._params = jax.device_put(cast)

    @property
    def compile_count(self) -> int:
        return self._counter.count

    def list_maker(self, room: Room) -> ListMaker:
        return ListMaker(
            atomic_numbers=tuple(int(z) for z in self.atomic_numbers),
            pbc=self.pbc,
            cutoff=self.potential.cutoff,
            skin=self.skin,
            room=room,
            replicas=self.replicas,
            cell_moves=self.integrator.moves_cell,
        )

    def advance(
        self, state: State, candidates: VerletList | None, room: Room, stops: list[int]
    ) -> tuple[State, VerletList, list[tuple[State, Observed, Status]]]:
        """From `state` to each step of `stops` (at most RECORDS, ascending).

        Returns the state at the last stop that was reached, its list, and what was there at every stop, the one
        included at which the loop ended early. After NEEDS_ROOM the state is the one of the stop before, and the
        list's `needs` say what to make room for.
        """
        padded = np.full(RECORDS, stops[-1], np.int64)
        padded[: len(stops)] = stops
        with precision("float64"):
            if candidates is None:
                candidates = self.list_maker(room).empty()
            with memory_errors(lambda: self._described(room), self._fix):
                state, candidates, records = self._program(room)(self._params, state, candidates, padded)
                host = jax.tree.map(np.asarray, records)
        rows = []
        for index in range(len(stops)):
            row = jax.tree.map(lambda array, index=index: array[index], host)
            rows.append(row)
            if row[2].code != RUNNING:
                break
        return state, candidates, rows

    def _described(self, room: Room) -> str:
        replicas = f"{self.replicas} replicas of " if self.replicas > 1 else ""
        return (
            f"molecular dynamics of {replicas}{len(self.atomic_numbers)} atoms with {room.neighbors} neighbour slots "
            f"each in {self.dtype}"
        )

    def _fix(self) -> str:
        float32 = "dtype float32, which needs half; " if self.dtype == "float64" else ""
        replicas = f"fewer replicas than {self.replicas}; " if self.replicas > 1 else ""
        return f"{float32}{replicas}ASE's dynamics with EquijaxCalculator(..., parts=8)"

    def _program(self, room: Room) -> Any:
        if room not in self._programs:
            self._programs = {room: self._compiled(room)}  # what was compiled for less room is never used again
        return self._programs[room]

    def _compiled(self, room: Room) -> Any:
        maker = self.list_maker(room)

        def run(params: Any, state: State, candidates: VerletList, stops: Array) -> Any:
            def segment(carry: Any, stop: Array) -> Any:
                start, _, _ = carry
                going = lambda c: (c[0].step < stop) & (c[2].code == RUNNING)  # noqa: E731
                end, candidates, status = jax.lax.while_loop(going, functools.partial(self._step, maker, params), carry)
                record = (dataclasses.replace(end, anchor=None), self._observe(end), status)
                kept = jax.tree.map(lambda new, old: jnp.where(status.code == NEEDS_ROOM, old, new), end, start)
                return (kept, candidates, status), record

            status = Status(jnp.int32(RUNNING), jnp.int32(0), jnp.int32(0), jnp.float64(0))
            carry, records = jax.lax.scan(segment, (state, candidates, status), stops)
            return carry[0], carry[1], records

        return jit(self._counter.wrap(run, "chunk"))

    def _step(self, maker: ListMaker, params: Any, carry: Any) -> Any:
        state, candidates, _ = carry
        moving = state.step >= 0  # before the first step there are only forces to compute
        step = state.step + 1

        def only_if_moving(new: State, old: State) -> State:
            chosen = jax.tree.map(lambda a, b: jnp.where(moving, a, b), new, old)
            return dataclasses.replace(chosen, step=step)

        state = only_if_moving(self.integrator.before(state), state)
        candidates = maker.updated(candidates, state.positions, state.cell)
        base = functools.partial(self._base, maker, params, state, candidates)
        prediction: Prediction | None = None
        if self.boost is None:
            forced, neighbors, prediction = base()
        else:
            forced, neighbors = self.boost.forces(base, self.integrator, state, candidates, self._species, self.pbc)
        needs: Needs = dataclasses.replace(
            candidates.needs, neighbors=jnp.maximum(candidates.needs.neighbors, neighbors)
        )
        candidates = dataclasses.replace(candidates, needs=needs)
        end = only_if_moving(self.integrator.after(forced), forced)
        status = self._judge(end, prediction)
        exceeded = needs.exceed(maker.room)
        code = jnp.where(exceeded & ~jnp.isin(status.code, jnp.array([NOT_FINITE, FLOWN])), NEEDS_ROOM, status.code)
        return end, candidates, dataclasses.replace(status, code=code.astype(jnp.int32))

    def _base(
        self, maker: ListMaker, params: Any, state: State, candidates: VerletList
    ) -> tuple[State, Array, Prediction]:
        """The state with the forces of the potential, the most neighbours needed, and what the potential said."""
        graph, vectors, neighbors = maker.graph(
            candidates, state.positions, state.cell, jnp.asarray(self._species), self.dtype
        )
        # The model is traced with the types of its own precision: what it makes itself is float32 in float32.
        with precision(self.dtype, self.potential.matmul_precision), blocks_above(LOOP_BYTES):
            prediction = uncertain_prediction(self.potential, params, graph, vectors, self.monitor is not None)
        return self._forced(state, prediction), neighbors, prediction

    def _forced(self, state: State, prediction: Prediction) -> State:
        real = state.positions.shape[0] * state.positions.shape[1]
        by_replica = lambda array: array[:real].astype(jnp.float64).reshape(*state.positions.shape[:2], -1)  # noqa: E731
        stress = state.stress if prediction.stress is None else prediction.stress[:-1].astype(jnp.float64)
        return dataclasses.replace(
            state,
            forces=by_replica(prediction.forces),
            energy=jnp.sum(by_replica(prediction.node_energies)[..., 0], axis=1),
            stress=stress if any(self.pbc) else state.stress,
        )

    def _observe(self, state: State) -> Observed:
        integrator = self.integrator
        return Observed(
            kinetic=integrator.kinetic(state.momenta),
            conserved=integrator.conserved(state),
            temperature=integrator.temperature_of(state.momenta),
            pressure=integrator.pressure_of(state),
            volume=volume(state.cell),
        )

    def _judge(self, state: State, prediction: Prediction | None) -> Status:
        """The first reason to stop in the order of the codes, with the replica and the atom that show it best."""
        shape = state.positions.shape[:2]
        finite = jnp.all(jnp.isfinite(state.positions) & jnp.isfinite(state.momenta), axis=-1)
        predicted = jnp.all(jnp.isfinite(state.forces), axis=-1)
        if prediction is None:
            predicted &= jnp.isfinite(state.energy)[:, None]
        else:
            predicted &= jnp.isfinite(prediction.node_energies[: shape[0] * shape[1]]).reshape(shape)
        centre = jnp.mean(state.positions, axis=1, keepdims=True)
        away = jnp.sqrt(squared_length(state.positions - centre))
        temperature = self.integrator.temperature_of(state.momenta)
        hot = jnp.broadcast_to(temperature[:, None], shape)
        energies = squared_length(state.momenta) / (2 * self.integrator.masses)
        reasons = [
            # A force that is not a number makes the momentum so in the same step: the model comes first.
            (MODEL, ~predicted, ~predicted, hot),
            (NOT_FINITE, ~finite, ~finite, hot),
            (FLOWN, self._flown(state), energies, away),
            (HOT, hot > self.temperature_limit, energies, hot),
        ]
        if self.monitor is not None and prediction is not None:
            value = self.monitor.function(prediction)[: shape[0] * shape[1]].reshape(shape).astype(jnp.float64)
            reasons.append((UNCERTAIN, value > self.monitor.limit, value, value))
        status = Status(jnp.int32(RUNNING), jnp.int32(0), jnp.int32(0), jnp.float64(0))
        for code, found, rank, value in reversed(reasons):
            # The worst atom of the worst replica among those where it was found.
            place = jnp.argmax(jnp.where(found, jnp.nan_to_num(rank.astype(jnp.float64)), -1.0))
            reason = Status(jnp.int32(code), place // shape[1], place % shape[1], value.reshape(-1)[place])
            status = jax.tree.map(
                lambda new, old, found=found: jnp.where(jnp.any(found), new, old).astype(old.dtype), reason, status
            )
        return status

    def _flown(self, state: State) -> Array:
        """[B, N]: farther than the host's search allows, where coordinates lose their digits."""
        if all(self.pbc):
            return jnp.abs(state.positions @ jax.vmap(inverse)(state.cell)).max(axis=-1) > 1e8
        centre = jnp.mean(state.positions, axis=1, keepdims=True)
        return squared_length(state.positions - centre) > (1e4 * self.potential.cutoff) ** 2
