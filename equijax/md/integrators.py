"""Integrators as pure functions: a step is `before` (up to the new positions), the forces, `after`.

Units are ASE's: eV, Å, amu; time in Å √(amu/eV), momenta in √(amu eV). B replicas are a leading axis of everything in
a state but of the step. Random numbers depend on the seed of the replica and the number of the step alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import units

from equijax.md.settings import Ensemble
from equijax.potential.boost import Anchor

Array = Any

CHAIN = 3
"""Thermostats of a Nosé-Hoover chain."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that the next step depends on, float64. B replicas of N atoms.

    `step` () int64: steps done, -1 before the first forces. `positions`, `momenta`, `forces` [B, N, 3], `cell`
    [B, 3, 3] rows a b c, `energy` [B] eV without the isolated atoms, `stress` [B, 3, 3] eV/Å³ in ASE's sign.
    `heat` [B] eV that thermostats and changes of the pressure have added. `chain` [B, 3] rates of a Nosé-Hoover chain,
    whose positions matter for the conserved energy alone and are in `heat`; `strain_rate` [B, 3, 3] of a barostat;
    `key` [B, 2] uint32. `anchor` is where the base model was last evaluated, None in runs without a surrogate.
    """

    step: Array
    positions: Array
    momenta: Array
    cell: Array
    forces: Array
    energy: Array
    stress: Array
    heat: Array
    chain: Array
    strain_rate: Array
    key: Array
    anchor: Anchor | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end` in a straight line over the first `steps` steps and stays there."""

    start: float
    end: float
    steps: int

    def at(self, step: Array) -> Array:
        if self.start == self.end:
            return jnp.asarray(self.start, jnp.float64)
        return self.start + (self.end - self.start) * jnp.clip(step / self.steps, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Integrator:
    """One ensemble for atoms of `masses` [N]; `free` [N] is False for fixed ones. `timestep`, `relaxation` (of the
    thermostat), `period` (of the barostat) in Å √(amu/eV), temperature schedule in K, pressure in eV/Å³."""

    ensemble: Ensemble
    masses: np.ndarray
    free: np.ndarray
    timestep: float
    temperature: Schedule
    pressure: Schedule
    relaxation: float
    period: float

    @property
    def keeps_momentum(self) -> bool:
        """The total momentum stays zero."""
        return self.ensemble in ("nve", "nose-hoover", "csvr") and bool(self.free.all())

    @property
    def degrees(self) -> int:
        """Degrees of freedom that carry kinetic energy."""
        return max(3 * int(self.free.sum()) - (3 if self.keeps_momentum else 0), 0)

    @property
    def moves_cell(self) -> bool:
        return self.ensemble in ("npt", "npt-full")

    def kinetic(self, momenta: Array) -> Array:
        """[B] eV"""
        return jnp.sum(jnp.sum(momenta**2, axis=-1) / (2 * self.masses), axis=-1)

    def temperature_of(self, momenta: Array) -> Array:
        """[B] K"""
        return 2 * self.kinetic(momenta) / (max(self.degrees, 1) * units.kB)

    def pressure_of(self, state: State) -> Array:
        """[B] eV/Å³, of a system that is periodic in three directions."""
        trace = jnp.trace(state.stress, axis1=-2, axis2=-1)
        return 2 * self.kinetic(state.momenta) / (3 * volume(state.cell)) - trace / 3

    def conserved(self, state: State) -> Array:
        """[B] eV, without the isolated atoms; constant up to the error of the integrator in every ensemble."""
        energy = state.energy + self.kinetic(state.momenta) - state.heat
        if self.ensemble == "nose-hoover":
            energy += jnp.sum(self._chain_masses() * state.chain**2, axis=-1) / 2
        if self.moves_cell:
            energy += self.pressure.at(state.step) * volume(state.cell)
            energy += self._cell_mass() * jnp.sum(state.strain_rate**2, axis=(-2, -1)) / 2
        return energy

    # --- the two halves of a step -----------------------------------------------------------------------------------

    def before(self, state: State) -> State:
        """Up to the positions (and cell) at which the next forces are needed; `step` counts the step that begins."""
        state = dataclasses.replace(state, step=state.step + 1)
        if self.ensemble == "nose-hoover":
            state = self._chain_half(state)
        if self.moves_cell:
            state = self._strain_kick(state, state.step - 1)
        state = self._kick(state)
        if self.ensemble in ("nve", "nose-hoover", "csvr"):
            return self._drift(state, self.timestep)
        return self._drift(self._friction(self._drift(state, self.timestep / 2)), self.timestep / 2)

    def after(self, state: State) -> State:
        """From the new forces to the end of the step."""
        state = self._kick(state)
        if self.moves_cell:
            state = self._strain_kick(state, state.step)
            change = self.pressure.at(state.step) - self.pressure.at(state.step - 1)
            state = dataclasses.replace(state, heat=state.heat + change * volume(state.cell))
        if self.ensemble == "nose-hoover":
            state = self._chain_half(state)
        if self.ensemble == "csvr":
            state = self._rescale(state)
        if self.keeps_momentum and self.ensemble != "nve":
            # Rounding of the forces would slowly turn heat into a flight of the whole system.
            total = jnp.sum(state.momenta, axis=1, keepdims=True)
            state = dataclasses.replace(state, momenta=state.momenta - self.masses[:, None] * total / self.masses.sum())
        return state

    def _kick(self, state: State) -> State:
        momenta, half = state.momenta, 0.5 * self.timestep
        if self.moves_cell:
            # The kick between two halves of the drag by the moving cell.
            trace = jnp.trace(state.strain_rate, axis1=-2, axis2=-1)[:, None, None]
            drag = exponential(-(half / 2) * (state.strain_rate + trace / self.degrees * jnp.eye(3)))
            return dataclasses.replace(state, momenta=(momenta @ drag + half * state.forces) @ drag)
        return dataclasses.replace(state, momenta=momenta + half * self._free(state.forces))

    def _drift(self, state: State, time: float) -> State:
        if not self.moves_cell:
            return dataclasses.replace(state, positions=state.positions + time * state.momenta / self.masses[:, None])
        # dr/dt = v + r ε', dh/dt = h ε' with constant v and ε'.
        velocities = state.momenta / self.masses[:, None]
        strain = time * state.strain_rate
        growth = exponential(strain)
        positions = state.positions @ growth + time * velocities @ exponential_mean(strain)
        return dataclasses.replace(state, positions=positions, cell=state.cell @ growth)

    def _free(self, array: Array) -> Array:
        return array if self.free.all() else jnp.where(self.free[:, None], array, 0.0)

    # --- thermostats ------------------------------------------------------------------------------------------------

    def _thermal(self, step: Array) -> Array:
        return units.kB * self.temperature.at(step)

    def _normal(self, state: State, shape: tuple[int, ...], stream: int) -> Array:
        """Standard normal numbers [B, *shape]."""

        def one(key: Array) -> Array:
            key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), state.step)
            return jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float64)

        return jax.vmap(one)(state.key)

    def _friction(self, state: State) -> State:
        """Ornstein-Uhlenbeck step of momenta and, in NPT, of the strain rate: the O of BAOAB."""
        thermal = self._thermal(state.step)
        keep = np.exp(-self.timestep / self.relaxation)
        noise = self._normal(state, state.momenta.shape[1:], 0)
        width = jnp.sqrt(self.masses[:, None] * thermal * (1 - keep**2))
        momenta = self._free(keep * state.momenta + width * noise)
        heat = self.kinetic(momenta) - self.kinetic(state.momenta)
        if not self.moves_cell:
            return dataclasses.replace(state, momenta=momenta, heat=state.heat + heat)
        keep = np.exp(-self.timestep / self.period)
        noise = self._shape(self._normal(state, (3, 3), 1))
        rate = keep * state.strain_rate + jnp.sqrt(thermal / self._cell_mass() * (1 - keep**2)) * noise
        heat += self._cell_mass() / 2 * jnp.sum(rate**2 - state.strain_rate**2, axis=(-2, -1))
        return dataclasses.replace(state, momenta=momenta, strain_rate=rate, heat=state.heat + heat)

    def _rescale(self, state: State) -> State:
        """Stochastic velocity rescaling, exact for any time step (Bussi, Donadio, Parrinello 2007, eq. A7)."""
        kinetic = self.kinetic(state.momenta)
        keep = np.exp(-self.timestep / self.relaxation)
        noise = self._normal(state, (self.degrees,), 0)
        target = self._thermal(state.step) / 2  # per degree of freedom
        ratio = target * (1 - keep) / jnp.maximum(kinetic, 1e-12)
        factor = keep + ratio * jnp.sum(noise**2, axis=-1) + 2 * noise[:, 0] * jnp.sqrt(keep * ratio)
        sign = jnp.where(noise[:, 0] + jnp.sqrt(keep / ratio) < 0, -1.0, 1.0)
        scale = sign * jnp.sqrt(factor)
        return dataclasses.replace(
            state, momenta=state.momenta * scale[:, None, None], heat=state.heat + kinetic * (factor - 1)
        )

    def _chain_masses(self) -> np.ndarray:
        thermal = units.kB * max(self.temperature.start, self.temperature.end)
        return thermal * self.relaxation**2 * np.array([self.degrees] + [1] * (CHAIN - 1))

    def _chain_half(self, state: State) -> State:
        """Half a step of a Nosé-Hoover chain (Martyna, Tuckerman, Tobias, Klein 1996, eq. 26-31)."""
        half, masses, thermal = self.timestep / 2, self._chain_masses(), self._thermal(state.step)
        rates = [state.chain[:, i] for i in range(CHAIN)]
        kinetic = self.kinetic(state.momenta)

        def push(link: int, kinetic: Array) -> None:
            if link == 0:
                force = (2 * kinetic - self.degrees * thermal) / masses[0]
            else:
                force = (masses[link - 1] * rates[link - 1] ** 2 - thermal) / masses[link]
            damp = 1.0 if link == CHAIN - 1 else jnp.exp(-rates[link + 1] * half / 4)
            rates[link] = (rates[link] * damp + force * half / 2) * damp

        for link in reversed(range(CHAIN)):
            push(link, kinetic)
        scale = jnp.exp(-half * rates[0])
        heat = state.heat - half * thermal * (self.degrees * rates[0] + sum(rates[1:]))
        kinetic = kinetic * scale**2
        for link in range(CHAIN):
            push(link, kinetic)
        return dataclasses.replace(
            state, momenta=state.momenta * scale[:, None, None], chain=jnp.stack(rates, axis=-1), heat=heat
        )

    # --- barostat ---------------------------------------------------------------------------------------------------

    def _cell_mass(self) -> float:
        """Of one component of the strain rate: a barostat that oscillates with the period (MTK 1994)."""
        thermal = units.kB * max(self.temperature.start, self.temperature.end)
        return (self.degrees + 3) * thermal * (self.period / (2 * np.pi)) ** 2 / 3

    def _shape(self, matrix: Array) -> Array:
        """The part of [B, 3, 3] that this barostat may do: symmetric, so that the cell does not turn, or isotropic."""
        if self.ensemble == "npt":
            return jnp.trace(matrix, axis1=-2, axis2=-1)[:, None, None] / 3 * jnp.eye(3)
        return (matrix + jnp.swapaxes(matrix, -1, -2)) / 2

    def _strain_kick(self, state: State, step: Array) -> State:
        """Half a step of the strain rate under the difference of the pressures (Martyna, Tobias, Klein 1994)."""
        velocities = state.momenta / self.masses[:, None]
        flow = jnp.einsum("bna,bnc->bac", state.momenta, velocities)
        size = volume(state.cell)[:, None, None]
        mean = jnp.trace(flow, axis1=-2, axis2=-1)[:, None, None] / self.degrees
        force = flow - size * state.stress + (mean - size * self.pressure.at(step)) * jnp.eye(3)
        rate = state.strain_rate + 0.5 * self.timestep * self._shape(force) / self._cell_mass()
        return dataclasses.replace(state, strain_rate=rate)


def volume(cell: Array) -> Array:
    """[B, 3, 3] Å -> [B] Å³"""
    return jnp.abs(jnp.sum(cell[:, 0] * jnp.cross(cell[:, 1], cell[:, 2]), axis=-1))


def exponential(matrix: Array) -> Array:
    """exp of small matrices [B, 3, 3], by its series: exact to rounding for norms below 0.1."""
    return jnp.eye(3) + matrix @ exponential_mean(matrix)


def exponential_mean(matrix: Array) -> Array:
    """(exp(x) - 1) / x of small matrices [B, 3, 3], the mean of exp(s x) over s from 0 to 1."""
    total = jnp.eye(3)
    for order in range(10, 1, -1):  # Horner: 1 + x/2 (1 + x/3 (1 + ...))
        total = jnp.eye(3) + matrix @ total / order
    return jnp.broadcast_to(total, matrix.shape)
