"""Summary of a molecular-dynamics run: temperature, energies, drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.report.style import BLUE, GREEN, GREY, ORANGE, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """A logged trajectory: `time` ps, `temperature` K, energies eV per atom, all [T]."""

    time: np.ndarray
    temperature: np.ndarray
    potential: np.ndarray
    kinetic: np.ndarray
    total: np.ndarray
    num_atoms: int
    ensemble: str

    @property
    def is_conserving(self) -> bool:
        """Whether the total energy should be constant."""
        return self.ensemble.lower() == "nve"

    def drift(self) -> tuple[float, float]:
        """Slope of a straight line through the total energy, meV/atom/ps, and the rest's standard deviation,
        meV/atom."""
        if len(self.time) < 3 or np.ptp(self.time) == 0:
            return float("nan"), float("nan")
        slope, offset = np.polyfit(self.time, 1e3 * self.total, 1)
        return float(slope), float(np.std(1e3 * self.total - slope * self.time - offset))


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
    return Dynamics(
        time=columns["time_ps"],
        temperature=columns["temperature"],
        potential=columns["potential_energy"] / atoms,
        kinetic=columns["kinetic_energy"] / atoms,
        total=(columns["potential_energy"] + columns["kinetic_energy"]) / atoms,
        num_atoms=atoms,
        ensemble=str(header.get("ensemble", "")),
    )


def dynamics_plot(run: Dynamics, name: str) -> Figure:
    """Temperature with its mean, and energies per atom relative to their start; NVE with the drift line."""
    with plot_style():
        figure = new_figure(10.4, 3.4)
        left, right = figure.subplots(1, 2)
        left.plot(run.time, run.temperature, color=BLUE, linewidth=1.0)
        mean = float(run.temperature.mean())
        left.axhline(mean, color=ORANGE, linewidth=1.8, label=f"mean {mean:.0f} K")
        left.set(title="Temperature", xlabel="time (ps)", ylabel="temperature (K)")
        left.set_ylim(bottom=0)
        left.legend(loc="lower right")
        if run.is_conserving:
            slope, rest = run.drift()
            right.plot(run.time, 1e3 * (run.total - run.total[0]), color=BLUE, linewidth=1.0, label="total energy")
            line = np.polyval(np.polyfit(run.time, 1e3 * (run.total - run.total[0]), 1), run.time)
            label = f"drift {slope:+.2g} meV/atom/ps,\nresidual {rest:.2g} meV/atom".replace("-", "−")
            right.plot(run.time, line, color=ORANGE, label=label)
            right.set(title="Conserved energy", xlabel="time (ps)", ylabel="change (meV/atom)")
        else:
            for values, color, label in (
                (run.potential, BLUE, "potential"),
                (run.kinetic, GREEN, "kinetic"),
                (run.total, GREY, "total"),
            ):
                right.plot(run.time, 1e3 * (values - values[0]), color=color, linewidth=1.0, label=label)
            right.set(title="Energies", xlabel="time (ps)", ylabel="change (meV/atom)")
        low, high = right.get_ylim()
        right.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
        right.legend(loc="upper left", ncols=2 if run.is_conserving else 3)
        length = float(run.time[-1] - run.time[0])
        figure.suptitle(
            f"{name}: {run.ensemble or 'MD'}, {run.num_atoms} atoms, {length:.2f} ps", x=0.01, ha="left", fontsize=12
        )
    return figure
