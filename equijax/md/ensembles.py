"""The ensembles as ASE integrators, each with a conserved quantity and a state that a restart can continue from."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from equijax.errors import EquijaxError
from equijax.md.settings import MDSettings
from equijax.units import GPA


class NVE(VelocityVerlet):
    """Velocity Verlet; the total energy is conserved."""

    def conserved_energy(self) -> float:
        """Potential plus kinetic energy, eV."""
        return float(self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy())

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing beyond positions and momenta."""


class Langevin(LangevinBAOAB):
    """BAOAB splitting (Leimkuhler and Matthews 2013), with the barostat of Quigley and Probert (2004) for NPT.

    The energy that the thermostats put in is counted, so that there is a conserved quantity: total energy
    minus heat, and in NPT plus P V and the kinetic energy of the cell. Its drift shows integration errors
    that the thermostat would hide.
    """

    heat = 0.0
    """eV that the thermostats of atoms and cell have added."""

    def conserved_energy(self) -> float:
        """eV."""
        energy = self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy() - self.heat
        if self.externalstress is not None:
            energy += self.p_eps**2 / (2 * self.barostat_mass) - self.externalstress * self.atoms.get_volume()
        return float(energy)

    def state(self) -> dict[str, Any]:
        """Numbers beyond positions, momenta and cell; the order of the steps is such that forces follow."""
        state: dict[str, Any] = {"heat": self.heat, "rng": self.rng.bit_generator.state}
        if self.externalstress is not None:
            state |= {name: float(getattr(self, name)) for name in ("p_eps", "force_eps", "gamma_mod")}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        for name, value in state.items():
            if name != "rng":
                setattr(self, name, value)

    def _BAOAB_OU(self, drag_gamma_mod: float = 0.0) -> None:
        # The drag by the moving cell is part of the conserved dynamics; what else changes is heat.
        dragged = self.atoms.get_kinetic_energy() * np.exp(-2 * drag_gamma_mod * self.dt)
        super()._BAOAB_OU(drag_gamma_mod)
        self.heat += float(self.atoms.get_kinetic_energy() - dragged)

    def _barostat_BAOAB_OU(self) -> None:
        before = self.p_eps**2
        super()._barostat_BAOAB_OU()
        self.heat += float((self.p_eps**2 - before) / (2 * self.barostat_mass))


def make_integrator(atoms: Atoms, settings: MDSettings) -> NVE | Langevin:
    """The integrator of `settings.ensemble`; computes the forces of `atoms`."""
    timestep = settings.timestep_fs * units.fs
    if settings.ensemble == "nve":
        return NVE(atoms, timestep)
    options: dict[str, Any] = {
        "temperature_K": settings.temperature,
        "T_tau": units.fs / settings.friction_per_fs,
        "hydrostatic": True,
        "rng": np.random.Generator(np.random.PCG64(settings.seed)),
    }
    if settings.ensemble == "npt":
        if not all(atoms.pbc) or atoms.cell.rank < 3:
            raise EquijaxError("ensemble npt needs a cell that is periodic in three directions")
        period = settings.barostat_period_fs * units.fs
        options |= {
            "externalstress": -settings.pressure_gpa * GPA,
            "P_tau": period,
            # The heuristic of ASE for a volume that oscillates with a quarter of this period.
            "P_mass": (period / 4 / (1.66 * units.fs) * len(atoms) ** (1 / 6)) ** 2,
        }
    return Langevin(atoms, timestep, **options)


def draw_momenta(atoms: Atoms, temperature: float, seed: int) -> np.ndarray:
    """Momenta [N, 3] of the Maxwell-Boltzmann distribution with zero total momentum, in ASE units."""
    # A stream of its own: the thermostat's random numbers must not repeat the velocities.
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    return momenta - masses * momenta.sum(axis=0) / masses.sum()


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """Those that carry kinetic energy: NVE keeps the total momentum at zero, thermostats do not."""
    free = atoms.get_number_of_degrees_of_freedom()
    return max(free - 3, 0) if ensemble == "nve" and not atoms.constraints else free
