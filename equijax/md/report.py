"""One page about a finished MD run: drift, temperature, structure, stability, speed, compilations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equijax.md.observables import BOND_CHANGE, Bonds, RadialDistribution, bond_changes, radial_distribution
from equijax.md.trajectory import read_trajectory
from equijax.report.dynamics import dynamics_plot, read_dynamics
from equijax.report.page import Page, shown
from equijax.report.style import BLUE, GREY, ORANGE, data_uri, new_figure, plot_style, to_png
from equijax.weights.atomic_file import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_FRAMES = 200
"""Of the trajectory, evenly spaced, for structure and stability."""
DRIFT_RATIO = 0.1
"""Of the drift over the run to the fluctuation of the kinetic energy: above it the drift is worth a warning."""


def write_md_report(summary: Mapping[str, Any]) -> Path:
    """Write `md.report.html` beside the trajectory of a run, from what `run_md` returned and its files."""
    trajectory = Path(summary.get("replicas", [summary])[0]["trajectory"])
    lines = trajectory.with_suffix(".jsonl").read_text().splitlines()
    dynamics = read_dynamics([json.loads(line) for line in lines])
    frames = list(read_trajectory(trajectory))
    frames = frames[:: max(1, len(frames) // MAX_FRAMES)]
    lead = (
        f"{summary['ensemble']}, {summary['num_atoms']} atoms, {summary['time_ps']:.3f} ps in steps of "
        f"{summary['timestep_fs']:g} fs, engine {summary['engine']}, {summary['dtype']}"
    )
    page = Page(trajectory.name, lead)
    _warnings(page, summary)
    bonds = bond_changes(frames)
    page.tiles(_tiles(summary, bonds))
    if dynamics is not None:
        page.section("Energy and temperature")
        page.picture(data_uri(to_png(dynamics_plot(dynamics, trajectory.name), 110)), "temperature, energies, drift")
        page.paragraph(
            "Conserved energy: the total energy, minus what thermostat and barostat have supplied. Drift is the slope "
            "of a straight line through it, the residual the standard deviation around that line."
        )
    if len(frames) > 1:
        page.section("Structure and stability")
        half = len(frames) // 2
        curves = [radial_distribution(part) for part in (frames[:half], frames[half:])]
        page.picture(data_uri(to_png(_structure_plot(curves, bonds), 110)), "pair distances, bond lengths")
        page.paragraph(
            f"Bonds are those of the first frame. A run is stable while none has changed by more than {BOND_CHANGE} Å "
            "(Fu et al. 2023, arXiv:2210.07237); atoms of liquids and melts may move on for good reasons."
        )
    if "replicas" in summary:
        page.section("Replicas")
        names = ("seed", "mean_temperature", "std_temperature", "max_temperature", "drift_mev_per_atom_per_ps")
        page.table(names, [[replica[name] for name in names] for replica in summary["replicas"]])
    path = trajectory.with_suffix(".report.html")
    write_atomically(path, page.text().encode())
    return path


def _warnings(page: Page, summary: Mapping[str, Any]) -> None:
    if summary["interrupted"]:
        page.warning(f"Stopped by {summary['interrupted']} at step {summary['steps']}; continue with --restart.")
    ratio = summary["drift_ratio"]
    if ratio is not None and ratio > DRIFT_RATIO:
        page.warning(
            f"The conserved energy drifts by {ratio:.2g} times the fluctuation of the kinetic energy: try a shorter "
            "time step, and equijax check on the model."
        )


def _tiles(summary: Mapping[str, Any], bonds: Bonds) -> list[tuple[str, str]]:
    drift, residual = summary["drift_mev_per_atom_per_ps"], summary["drift_residual_mev_per_atom"]
    stable = "whole run" if bonds.broken_after is None else f"{1e-3 * bonds.broken_after:.3g} ps"
    return [
        ("–" if drift is None else f"{drift:+.2e}", "drift, meV/atom/ps"),
        ("–" if residual is None else f"{residual:.2e}", "residual, meV/atom"),
        (f"{summary['mean_temperature']:.0f} ± {summary['std_temperature']:.0f}", "temperature, K"),
        (stable, "stable for"),
        (shown(summary["ns_per_day"]), "ns/day"),
        (shown(summary["us_per_atom_step"]), "µs per atom and step"),
        (str(summary["compile_count"]), "compilations"),
    ]


def _structure_plot(curves: list[RadialDistribution], bonds: Bonds) -> Figure:
    with plot_style():
        figure = new_figure(9.4, 3.4)
        left, right = figure.subplots(1, 2)
        for curve, color, label in zip(curves, (GREY, BLUE), ("first half", "second half"), strict=True):
            left.plot(curve.distance, curve.density, color=color, label=label, linewidth=1.4)
        name = "g(r)" if curves[0].is_periodic else "pairs per Å and atom"
        left.set(title="Pair distances", xlabel="r (Å)", ylabel=name, ylim=(0, None))
        left.legend()
        right.plot(1e-3 * bonds.time, bonds.largest, color=BLUE)
        right.axhline(BOND_CHANGE, color=ORANGE, label="unstable above")
        right.set(title="Largest change of a bond", xlabel="time (ps)", ylabel="change (Å)", ylim=(0, None))
        right.legend()
    return figure
