"""Atoms in motion: an engine with its state, its neighbour list, and room that grows when it must."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import chemical_symbols

from equijax.errors import EquijaxError
from equijax.graph.batching import species_index
from equijax.graph.neighbors import completed_cell
from equijax.md import engine as codes
from equijax.md.boost import Boost, anchor_arrays, anchor_of
from equijax.md.engine import RECORDS, Engine, Monitor, Observed, Status
from equijax.md.ensembles import draw_momenta
from equijax.md.integrators import CHAIN, Integrator, Schedule, State
from equijax.md.pair_search import Room
from equijax.md.settings import MDSettings
from equijax.md.verlet_list import SKIN, Needs, VerletList, first_room
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure
from equijax.units import GPA


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a run looks like after `step` steps; arrays are numpy with a leading axis of replicas."""

    step: int
    state: State
    observed: Observed


class MDStopped(EquijaxError):
    """A run that cannot go on: why, what it looked like then, and the moments of the same call before."""

    def __init__(self, reason: str, moment: Moment, before: list[Moment]) -> None:
        super().__init__(f"MD stopped at step {moment.step}: {reason}")
        self.reason, self.moment, self.before = reason, moment, before


class Simulation:
    """B replicas of `atoms`, which stay as they are, under a potential and MDSettings.

    Replica b has the velocities and random numbers of a run with the seed `settings.seed` + b. `atoms` may have fixed
    atoms (ASE's FixAtoms) and no other constraint. After the constructor no step is done and no force computed;
    `run_to` does that. Raises EquijaxError for elements the model does not know, positions that are not finite, and
    ensembles that the system or the model has no meaning for.

    >>> simulation = Simulation(potential, atoms, MDSettings(ensemble="csvr"))  # doctest: +SKIP
    >>> for moment in simulation.run_to([0, 100, 200]):                         # doctest: +SKIP
    ...     print(moment.step, moment.observed.temperature)
    """

    def __init__(
        self,
        potential: Potential,
        atoms: Atoms,
        settings: MDSettings,
        *,
        dtype: DType | None = None,
        replicas: int = 1,
        monitor: Monitor | None = None,
        skin: float = SKIN,
        boost: Boost | None = None,
    ) -> None:
        structure = Structure.from_ase(atoms)
        if len(structure) == 0:
            raise EquijaxError("the structure has no atoms")
        if replicas < 1:
            raise EquijaxError(f"replicas is {replicas}; expected a positive integer")
        if not (np.isfinite(skin) and skin >= 0):
            raise EquijaxError(f"skin is {skin}; expected a length in Å, zero or more")
        species_index(structure, potential.elements)
        if boost is not None:
            boost.check(potential, atoms, settings, dtype or potential.dtype, monitor is not None)
        self.potential, self.settings, self.replicas = potential, settings, replicas
        self.atoms = atoms.copy()
        self._energy_shift = float(potential.isolated_energies(structure.atomic_numbers).sum())
        self.integrator = make_integrator(self.atoms, settings)
        self.engine = Engine(
            potential,
            dtype or potential.dtype,
            self.integrator,
            structure.atomic_numbers,
            structure.pbc,
            replicas,
            settings.temperature_limit,
            monitor,
            skin,
            boost,
        )
        self.room = first_room(structure, potential.cutoff, skin)
        self.list: VerletList | None = None
        self.state = self._first_state(structure)

    def begin(self, atoms: Atoms) -> None:
        """Start again at step 0 from other positions, momenta or cell of the same atoms, without a compilation."""
        structure = Structure.from_ase(atoms)
        same = np.array_equal(structure.atomic_numbers, self.atoms.numbers) and all(structure.pbc == self.atoms.pbc)
        if not same or not np.array_equal(fixed_atoms(atoms), fixed_atoms(self.atoms)):
            raise EquijaxError("begin needs the atoms, periodicity and fixed atoms of the simulation in their order")
        first_room(structure, self.potential.cutoff, self.engine.skin)  # looks at the positions
        self.atoms, self.list = atoms.copy(), None
        self.state = self._first_state(structure)

    def _first_state(self, structure: Structure) -> State:
        count, number = self.replicas, len(structure)
        seeds = [self.settings.seed + replica for replica in range(count)]
        if self.settings.velocities == "keep":
            momenta = np.tile(self.atoms.get_momenta(), (count, 1, 1))
        else:
            momenta = np.stack([draw_momenta(self.atoms, self.settings.temperature, seed) for seed in seeds])
        return State(
            step=np.int64(-1),
            positions=np.tile(structure.positions, (count, 1, 1)),
            momenta=np.where(self.integrator.free[:, None], momenta, 0.0),
            cell=np.tile(completed_cell(structure), (count, 1, 1)),
            forces=np.zeros((count, number, 3)),
            energy=np.zeros(count),
            stress=np.zeros((count, 3, 3)),
            heat=np.zeros(count),
            chain=np.zeros((count, CHAIN)),
            strain_rate=np.zeros((count, 3, 3)),
            key=np.stack([np.random.SeedSequence(seed).generate_state(2) for seed in seeds]),
            anchor=None if self.engine.boost is None else self.engine.boost.first_anchor(count, number),
        )

    @property
    def step(self) -> int:
        """Steps done; -1 before the first forces."""
        return int(self.state.step)

    @property
    def compile_count(self) -> int:
        return self.engine.compile_count

    @property
    def list_rebuilds(self) -> int:
        """Neighbour searches since the list last got more room."""
        return 0 if self.list is None else int(self.list.searches)

    def run_to(self, stops: Sequence[int]) -> list[Moment]:
        """Go on to each step of `stops`, ascending; 0 is the start with its forces. One Moment for each.

        Where there was not enough room for the neighbours, the steps since the last stop are done again with more,
        after one more compilation. Raises MDStopped.
        """
        moments: list[Moment] = []
        while len(moments) < len(stops):
            moments += self.advance(stops[len(moments) : len(moments) + RECORDS])
        return moments

    def advance(self, stops: Sequence[int]) -> list[Moment]:
        """As `run_to`, in one call of the program: perhaps not to the last stop, at most RECORDS of them."""
        wanted = list(stops[:RECORDS])
        if wanted != sorted(set(wanted)) or wanted[0] <= self.step:
            raise EquijaxError(f"stops are {wanted}; expected ascending steps after {self.step}")
        self.state, self.list, rows = self.engine.advance(self.state, self.list, self.room, wanted)
        moments: list[Moment] = []
        for state, observed, status in rows:
            code = int(status.code)
            if code == codes.NEEDS_ROOM:
                self.room, self.list = self.list.needs.grown(self.room), None
                break
            moment = Moment(int(state.step), state, observed)
            if code != codes.RUNNING:
                raise MDStopped(self._reason(status, moment), moment, moments)
            moments.append(moment)
        return moments

    def frame(self, moment: Moment, replica: int = 0) -> Atoms:
        """ASE Atoms of a moment with energy and forces."""
        state = moment.state
        frame = Atoms(
            numbers=self.atoms.numbers,
            positions=state.positions[replica],
            momenta=state.momenta[replica],
            cell=state.cell[replica] if self.integrator.moves_cell else self.atoms.cell,
            pbc=self.atoms.pbc,
            info={
                "step": moment.step,
                "time_fs": moment.step * self.settings.timestep_fs,
                "temperature": float(moment.observed.temperature[replica]),
            },
        )
        energy = float(state.energy[replica]) + self._energy_shift
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=state.forces[replica])
        return frame

    def record(self, moment: Moment, replica: int = 0) -> dict[str, Any]:
        """What the log says about a moment: eV, K, ps; pressure in GPa and volume in Å³ of periodic systems."""
        observed = moment.observed
        potential = float(moment.state.energy[replica]) + self._energy_shift
        kinetic = float(observed.kinetic[replica])
        record = {
            "step": moment.step,
            "time_ps": 1e-3 * moment.step * self.settings.timestep_fs,
            "potential_energy": potential,
            "kinetic_energy": kinetic,
            "total_energy": potential + kinetic,
            "conserved_energy": float(observed.conserved[replica]) + self._energy_shift,
            "temperature": float(observed.temperature[replica]),
        }
        if all(self.atoms.pbc) and self.potential.is_conservative:
            record["pressure_gpa"] = float(observed.pressure[replica]) / GPA
        if self.integrator.moves_cell:
            record["volume"] = float(observed.volume[replica])
        return record

    # --- a restart --------------------------------------------------------------------------------------------------

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything the next step depends on: arrays, and the room as JSON. Which neighbours are candidates is part
        of it, because with them there may be more room from some step on, and sums in another order."""
        assert self.list is not None
        arrays = {}
        for prefix, part in (("state", self.state), ("list", self.list), ("needs", self.list.needs)):
            for field in dataclasses.fields(part):
                if field.name not in ("needs", "anchor"):
                    arrays[f"{prefix}_{field.name}"] = np.array(getattr(part, field.name))
        if self.state.anchor is not None:
            arrays |= anchor_arrays(self.state.anchor)
        return arrays, dataclasses.asdict(self.room)

    def restore(self, arrays: dict[str, np.ndarray], room: dict[str, Any]) -> None:
        """Continue from what `saved` gave in a simulation of the same atoms, settings and model."""

        def part(prefix: str, kind: Any) -> dict[str, np.ndarray]:
            names = [field.name for field in dataclasses.fields(kind) if field.name not in ("needs", "anchor")]
            return {name: arrays[f"{prefix}_{name}"] for name in names}

        anchor = None if self.state.anchor is None else anchor_of(arrays)
        self.state = State(**part("state", State), anchor=anchor)
        shape: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in room.items()}
        self.room = Room(**shape)
        self.list = VerletList(**part("list", VerletList), needs=Needs(**part("needs", Needs)))

    # --- messages ---------------------------------------------------------------------------------------------------

    def _reason(self, status: Status, moment: Moment) -> str:
        replica, atom, value = int(status.replica), int(status.atom), float(status.value)
        state = jax.tree.map(lambda array: array[replica] if np.ndim(array) else array, moment.state)
        name = f"atom {atom} ({chemical_symbols[self.atoms.numbers[atom]]})"
        place = state.positions[atom].tolist()
        reason = {
            codes.MODEL: f"the model gives the force {state.forces[atom].tolist()} for {name} at {place}; is the "
            "geometry reasonable?",
            codes.NOT_FINITE: f"atom {atom} position or momentum is not finite",
            codes.FLOWN: f"{name} has flown away: it is {value:.3g} Å from the centre",
            codes.HOT: f"the temperature is {value:.0f} K, more than {self.settings.temperature_limit:.0f} K; fastest "
            f"is {name} with a kinetic energy of "
            f"{np.sum(state.momenta[atom] ** 2) / (2 * self.integrator.masses[atom]):.3g} eV and a force of "
            f"{np.linalg.norm(state.forces[atom]):.3g} eV/Å",
        }
        if self.engine.monitor is not None:
            monitor = self.engine.monitor
            reason[codes.UNCERTAIN] = f"{monitor.name} of {name} is {value:.3g}, more than {monitor.limit:.3g}"
        hint = "" if self.engine.boost is None else "; a shorter boost interval shows whether the surrogate is to blame"
        return (f"replica {replica}: " if self.replicas > 1 else "") + reason[int(status.code)] + hint


def make_integrator(atoms: Atoms, settings: MDSettings) -> Integrator:
    """The integrator of `settings` for the masses and fixed atoms of `atoms`."""
    free = np.ones(len(atoms), bool)
    free[fixed_atoms(atoms)] = False
    if settings.has_barostat and not free.all():
        raise EquijaxError(f"ensemble {settings.ensemble}: a cell that moves has no fixed atoms; remove the constraint")
    if settings.has_barostat and not (all(atoms.pbc) and Structure.from_ase(atoms).volume > 1e-9):
        raise EquijaxError(f"ensemble {settings.ensemble} needs a cell that is periodic in three directions")
    ramp = settings.ramp_steps or 1
    final_temperature, final_pressure = settings.final_temperature, settings.final_pressure_gpa
    temperature = settings.temperature if final_temperature is None else final_temperature
    pressure = settings.pressure_gpa if final_pressure is None else final_pressure
    integrator = Integrator(
        ensemble=settings.ensemble,
        masses=atoms.get_masses(),
        free=free,
        timestep=settings.timestep_fs * units.fs,
        temperature=Schedule(settings.temperature, temperature, ramp),
        pressure=Schedule(settings.pressure_gpa * GPA, pressure * GPA, ramp),
        relaxation=units.fs / settings.friction_per_fs,
        period=settings.barostat_period_fs * units.fs,
    )
    if integrator.degrees == 0 and settings.ensemble in ("nose-hoover", "csvr"):
        raise EquijaxError(f"ensemble {settings.ensemble}: no atom can move relative to the others; expected langevin")
    return integrator


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Indices of atoms that ASE's FixAtoms holds; EquijaxError for any other constraint."""
    found = [np.empty(0, int)]
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise EquijaxError(
                f"the engine jit knows fixed atoms and no other constraint, not {type(constraint).__name__}; "
                "use the engine ase"
            )
        found.append(np.asarray(constraint.get_indices()))
    return np.concatenate(found)
