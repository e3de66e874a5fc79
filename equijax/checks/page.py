"""The report of a check on one page: verdict, table, dimer curves, cutoff and dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.checks.cutoff import Crossing
from equijax.checks.dimers import DEEP, Dimer
from equijax.checks.dynamics import NVERun
from equijax.checks.rows import Row, Verdict
from equijax.checks.suite import ModelCheck
from equijax.report.page import Page, shown
from equijax.report.style import BLUE, GREEN, GREY, ORANGE, data_uri, new_figure, plot_style, to_png
from equijax.weights.atomic_file import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS: dict[Verdict, str] = {"pass": "ok", "warn": "warn", "fail": "FAIL", "info": "–"}
MAX_PANELS = 12
HIGHEST = 8.0
"""eV; walls go on beyond the picture."""


def write_page(path: Path, title: str, lead: str, result: ModelCheck) -> Path:
    """Write the report as one HTML file that loads nothing; `lead` says what the model is."""
    page = Page(title, lead)
    counts = {verdict: sum(row.verdict == verdict for row in result.rows) for verdict in ("pass", "warn", "fail")}
    page.tiles([(result.verdict.upper(), "verdict"), *((str(n), name) for name, n in counts.items())])
    page.paragraph(f"Structures: {result.source}; heaps of atoms of all elements.")
    for row in result.rows:
        if row.verdict == "fail":
            page.warning(f"{row.name}: {shown(row.value)} {row.unit}, allowed {shown(row.limit)}. {row.note}")
    page.section("What was measured")
    page.table(("", "property", "measured", "allowed", "unit", "where"), [cells(row) for row in result.rows], (1, 4, 5))
    if result.dimers:
        page.section("Pairs of atoms")
        _picture(page, dimer_figure(result.dimers), "Energy of pairs of atoms over their distance")
        page.paragraph(
            "Energy relative to the separated atoms. Shaded: below 0.65 of the sum of the covalent radii, where every "
            "pair must repel. Orange: a pair that attracts there or has a second well."
        )
    if result.crossing is not None and result.runs:
        page.section("Cutoff and dynamics")
        _picture(page, motion_figure(result.crossing, result.runs), "An atom that crosses the cutoff, and energies")
    return write_atomically(path, page.text().encode())


def cells(row: Row) -> tuple[Any, ...]:
    """Verdict, property, measured, allowed, unit, where: a line of a table."""
    allowed = "–" if row.limit is None else f"{row.limit:.1e}" if row.limit else "0"
    return WORDS[row.verdict], row.name, f"{row.value:.1e}" if row.value else "0", allowed, row.unit, row.note


def _picture(page: Page, figure: Figure, description: str) -> None:
    page.picture(data_uri(to_png(figure)), description)


def dimer_figure(dimers: Sequence[Dimer]) -> Figure:
    """A panel per pair; of many pairs those with a warning, then the first."""
    ordered = sorted(dimers, key=lambda d: not _is_odd(d))[:MAX_PANELS]
    columns = min(len(ordered), 4)
    rows = -(-len(ordered) // columns)
    with plot_style():
        figure = new_figure(3.3 * columns, 2.7 * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, dimer in zip(axes, ordered, strict=False):
            _draw_dimer(axis, dimer)
        for axis in axes[len(ordered) :]:
            axis.set_visible(False)
        for row in range(rows):
            axes[row * columns].set_ylabel("energy (eV)")
        for axis in axes[max(0, len(ordered) - columns) : len(ordered)]:
            axis.set_xlabel("distance (Å)")
    return figure


def _is_odd(dimer: Dimer) -> bool:
    return not (dimer.attraction <= 0 and dimer.second_depth <= DEEP)


def _draw_dimer(axis: Axes, dimer: Dimer) -> None:
    color = ORANGE if _is_odd(dimer) else BLUE
    axis.axvspan(dimer.distance[0], dimer.wall, color="#ececec", linewidth=0)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.plot(dimer.distance, dimer.energy, color=color)
    low = max(float(dimer.energy.min()), -10 * HIGHEST)
    beyond = dimer.energy[dimer.distance > dimer.wall]
    high = min(HIGHEST, max(0.5, float(beyond.max())))
    axis.set_ylim(low - 0.1 * (high - low), high)
    axis.set_xlim(dimer.distance[0], dimer.distance[-1])
    axis.set_title(dimer.name)


def motion_figure(crossing: Crossing, runs: Sequence[NVERun]) -> Figure:
    """Energy and force of an atom that leaves, and the total energy of the two runs."""
    with plot_style():
        figure = new_figure(12.6, 3.3)
        energy, force, total = figure.subplots(1, 3)
        leaver, anchor = crossing.elements
        curves = ((energy, 1e3 * crossing.energy, "energy (meV)"), (force, crossing.force, "force (eV/Å)"))
        for axis, values, name in curves:
            axis.axvline(0, color=GREY, linestyle="--", linewidth=1.0)
            axis.plot(crossing.gap, values, color=BLUE)
            axis.set(xlabel="distance beyond the cutoff (Å)", ylabel=name)
        energy.set_title(f"{leaver} leaves a heap at {anchor}")
        force.set_title("Force on it")
        for run, color in zip(runs, (BLUE, GREEN), strict=False):
            label = f"{run.timestep:g} fs"
            axis_values = np.clip(run.total, -1e6, 1e6)
            total.plot(run.time, axis_values, color=color, label=label)
        total.set(title="Total energy at constant energy", xlabel="time (fs)", ylabel="change (meV/atom)")
        low, high = total.get_ylim()
        total.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
        total.legend(loc="upper left", ncols=2, title="time step")
    return figure
