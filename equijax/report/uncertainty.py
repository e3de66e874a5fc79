"""Pictures of uncertainties: errors against them, and the calibration curve."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.potential.calibration import calibration_curve, quality, spearman
from equijax.report.parity import MAX_POINTS
from equijax.report.predictions import Predictions
from equijax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from equijax.report.page import Page

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
BINS = 12
"""Of equal count, for the running root mean squares."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Errors and uncertainties of one label of one set, value by value, in meV per atom, per Å or per Å³; `lengths` are
    those of the rows whose ranks are compared: structures, or atoms."""

    label: str
    unit: str
    errors: np.ndarray
    sigmas: np.ndarray
    lengths: tuple[np.ndarray, np.ndarray]


def spreads(predictions: Predictions) -> list[Spread]:
    """The labels of a set that have uncertainties."""
    found = []
    for label, unit in (("energy", "meV/atom"), ("forces", "meV/Å"), ("stress", "meV/Å³")):
        sigmas = getattr(predictions, f"{label}_uncertainty")
        if sigmas is None:
            continue
        size = predictions.num_atoms if label == "energy" else 1
        errors = 1e3 * (getattr(predictions, f"{label}_pred") - getattr(predictions, f"{label}_true")) / size
        sigmas = 1e3 * sigmas / size
        rows = [values.reshape(len(values), -1) for values in (errors, sigmas)]
        known = np.isfinite(rows[0]).all(axis=1) & np.isfinite(rows[1]).all(axis=1) & (rows[1] > 0).all(axis=1)
        if known.any():
            e, s = (values[known] for values in rows)
            lengths = (np.sqrt(np.sum(e**2, axis=1)), np.sqrt(np.sum(s**2, axis=1)))
            found.append(Spread(label, unit, e.ravel(), s.ravel(), lengths))
    return found


def uncertainty_section(page: Page, sets: dict[str, Predictions], picture: Any) -> None:
    """Table and pictures of all sets; nothing where no model had uncertainties. `picture(page, figure, text)`."""
    by_set = {name: found for name, predictions in sets.items() if (found := spreads(predictions))}
    if not by_set:
        return
    page.section("Uncertainties")
    rows = []
    for name, found in by_set.items():
        for spread in found:
            numbers = quality(spread.errors, spread.sigmas)
            error = float(np.sqrt(np.mean(spread.errors**2)))
            rows.append((f"{name}, {spread.label}", spread.unit, error, numbers["rms"],
                         100 * numbers["coverage_1sigma"], 100 * numbers["coverage_2sigma"],
                         spearman(*spread.lengths), numbers["miscalibration_area"]))  # fmt: skip
    columns = ("set", "unit", "RMS error", "RMS σ", "within 1σ, %", "within 2σ, %", "rank correlation", "area")
    page.table(columns, rows, text_columns=(1,))
    page.paragraph(
        "A Gaussian has 68.3 % within 1σ and 95.4 % within 2σ. Rank correlation (Spearman): of |error| and σ over "
        "structures, or over atoms for forces. Area: between the calibration curve and the diagonal, 0 at best."
    )
    picture(page, uncertainty_plot(by_set), "Errors against uncertainties, and calibration curves")


def uncertainty_plot(sets: dict[str, list[Spread]]) -> Figure:
    """A column per label: |error| over σ with running root mean squares above, calibration curves below."""
    labels = [
        label for label in ("energy", "forces", "stress") if any(s.label == label for f in sets.values() for s in f)
    ]
    with plot_style():
        figure = new_figure(4.8 * len(labels), 8.2)
        grid = figure.subplots(2, len(labels), squeeze=False)
        for column, label in enumerate(labels):
            chosen = {name: s for name, found in sets.items() for s in found if s.label == label}
            _errors(grid[0, column], chosen)
            _curves(grid[1, column], chosen)
    return figure


def _errors(axis: Axes, chosen: dict[str, Spread]) -> None:
    for colour, (name, spread) in zip(COLOURS * len(chosen), chosen.items()):
        errors, sigmas = np.abs(spread.errors), spread.sigmas
        if errors.size > MAX_POINTS:
            kept = np.random.default_rng(0).choice(errors.size, MAX_POINTS, replace=False)
            errors, sigmas = errors[kept], sigmas[kept]
        axis.scatter(sigmas, errors, s=4, color=colour, alpha=0.15, linewidths=0, rasterized=True)
        parts = np.array_split(np.argsort(spread.sigmas), min(BINS, max(1, spread.sigmas.size // 10)))
        means = [[np.sqrt(np.mean(v[part] ** 2)) for part in parts] for v in (spread.sigmas, spread.errors)]
        axis.plot(*means, color=colour, marker="o", markersize=3.5, label=name)
    first = next(iter(chosen.values()))
    sigmas = np.concatenate([spread.sigmas for spread in chosen.values()])
    limits = np.array([np.quantile(sigmas, 0.001), sigmas.max()])
    axis.plot(limits, limits, color=GREY, linewidth=1.0)
    axis.set(xscale="log", yscale="log", ylim=(0.02 * limits[0], None))
    if limits[1] < 5 * limits[0]:  # labels of the minor ticks would lie over each other
        axis.set(xscale="linear")
    axis.set(xlabel=f"uncertainty σ ({first.unit})", ylabel=f"|error|, lines: RMS ({first.unit})")
    axis.set_title({"energy": "Energy per atom"}.get(first.label, f"{first.label.capitalize()}, components"))
    axis.legend(loc="upper left")  # "best" takes seconds with many points


def _curves(axis: Axes, chosen: dict[str, Spread]) -> None:
    axis.plot((0, 1), (0, 1), color=GREY, linewidth=1.0)
    for colour, (name, spread) in zip(COLOURS * len(chosen), chosen.items()):
        axis.plot(*calibration_curve(spread.errors, spread.sigmas), color=colour, label=name)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the interval", ylabel="share of errors in it")
    axis.legend(loc="upper left")  # "best" takes seconds with many points
