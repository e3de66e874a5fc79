"""Summary of a molecular-dynamics run: temperature, energies, drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.report.style import BLUE, GREEN, ORANGE, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """A logged trajectory: `time` ps, `temperature` K, energies eV per atom, all [T].

    `conserved` is the total energy in NVE; with a thermostat, the total energy minus the heat it has supplied.
    """

    time: np.ndarray
    temperature: np.ndarray
    potential: np.ndarray
    kinetic: np.ndarray
    conserved: np.ndarray | None
    num_atoms: int
    ensemble: str

    def drift(self) -> tuple[float, float]:
        """Slope of a straight line through the conserved energy, meV/atom/ps, and the rest's standard
        deviation, meV/atom. Not a number where nothing is conserved."""
        if self.conserved is None or len(self.time) < 3 or np.ptp(self.time) == 0:
            return float("nan"), float("nan")
        change = 1e3 * (self.conserved - self.conserved[0])
        slope, offset = np.polyfit(self.time, change, 1)
        return float(slope), float(np.std(change - slope * self.time - offset))


def read_dynamics(records: Sequence[dict[str, Any]]) -> Dynamics | None:
    """From the lines of an MD log; None when fewer than two are usable."""
    keys = ("time_ps", "temperature", "potential_energy", "kinetic_energy")
    usable = [r for r in records if all(isinstance(r.get(key), (int, float)) for key in keys)]
    if len(usable) < 2:
        return None
    columns = {key: np.array([float(record[key]) for record in usable]) for key in keys}
    header: dict[str, Any] = {}
    for record in records:
        header |= {key: record[key] for key in ("num_atoms", "ensemble") if key in record}
    atoms = int(header.get("num_atoms", 1))
    total = columns["potential_energy"] + columns["kinetic_energy"]
    ensemble = str(header.get("ensemble", ""))
    conserved = None
    if all(isinstance(record.get("conserved_energy"), (int, float)) for record in usable):
        conserved = np.array([float(record["conserved_energy"]) for record in usable])
    elif ensemble.lower() == "nve":
        conserved = total
    return Dynamics(
        time=columns["time_ps"],
        temperature=columns["temperature"],
        potential=columns["potential_energy"] / atoms,
        kinetic=columns["kinetic_energy"] / atoms,
        conserved=None if conserved is None else conserved / atoms,
        num_atoms=atoms,
        ensemble=ensemble,
    )


def dynamics_plot(run: Dynamics, name: str) -> Figure:
    """Temperature with its mean, energies per atom relative to their start, and the drift of what is conserved."""
    with plot_style():
        figure = new_figure(13.5 if run.conserved is not None else 9.4, 3.4)
        axes = list(figure.subplots(1, 3 if run.conserved is not None else 2))
        axes[0].plot(run.time, run.temperature, color=BLUE, linewidth=1.0)
        mean = float(run.temperature.mean())
        axes[0].axhline(mean, color=ORANGE, linewidth=1.8, label=f"mean {mean:.0f} K")
        axes[0].set(title="Temperature", xlabel="time (ps)", ylabel="temperature (K)")
        axes[0].set_ylim(bottom=0)
        for values, color, label in ((run.potential, BLUE, "potential"), (run.kinetic, GREEN, "kinetic")):
            axes[1].plot(run.time, 1e3 * (values - values[0]), color=color, linewidth=1.0, alpha=0.85, label=label)
        axes[1].set(title="Energies", xlabel="time (ps)", ylabel="change (meV/atom)")
        if run.conserved is not None:
            slope, rest = run.drift()
            change = 1e3 * (run.conserved - run.conserved[0])
            axes[2].plot(run.time, change, color=BLUE, linewidth=1.0)
            label = f"drift {slope:+.2g} meV/atom/ps,\nresidual {rest:.2g} meV/atom".replace("-", "−")
            if np.isfinite(slope):
                line = np.polyval(np.polyfit(run.time, change, 1), run.time)
                axes[2].plot(run.time, line, color=ORANGE, label=label)
            axes[2].set(title="Conserved energy", xlabel="time (ps)", ylabel="change (meV/atom)")
        for axis in axes:
            low, high = axis.get_ylim()
            axis.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
            axis.legend(loc="upper left", ncols=2)
        length = float(run.time[-1] - run.time[0])
        figure.suptitle(
            f"{name}: {run.ensemble or 'MD'}, {run.num_atoms} atoms, {length:.2f} ps", x=0.01, ha="left", fontsize=12
        )
    return figure
