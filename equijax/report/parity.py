"""Parity plots: prediction against reference, coloured by how many points lie there, with the residuals."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from equijax.report.predictions import Predictions
from equijax.report.style import DENSITY, GREY, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 40_000
"""More points than this are thinned out in the picture, never in the numbers."""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """Paired values of one label in the unit of the plot."""

    title: str
    unit: str
    true: np.ndarray
    predicted: np.ndarray
    residual_unit: str
    residual_factor: float
    note: str = ""


def quantities(predictions: Predictions) -> list[Quantity]:
    """The labels that the set has: energy per atom, components of forces, stress and targets."""
    found = []
    energy = predictions.energy_true / predictions.num_atoms
    labelled = np.isfinite(energy) & np.isfinite(predictions.energy_pred)
    if labelled.any():
        # Total energies are dominated by the isolated atoms; differences from the mean show what was learnt.
        mean = energy[labelled].mean()
        predicted = (predictions.energy_pred / predictions.num_atoms)[labelled]
        found.append(
            Quantity(
                "Energy per atom", "meV/atom", 1e3 * (energy[labelled] - mean), 1e3 * (predicted - mean), "meV/atom",
                1.0, f"relative to {mean:.3f} eV/atom".replace("-", "−"),
            )
        )  # fmt: skip
    for title, unit, true, predicted in (
        ("Force components", "eV/Å", predictions.forces_true, predictions.forces_pred),
        ("Stress components", "eV/Å³", predictions.stress_true, predictions.stress_pred),
    ):
        labelled = np.isfinite(true) & np.isfinite(predicted)
        if labelled.any():
            found.append(Quantity(title, unit, true[labelled], predicted[labelled], f"m{unit}", 1e3))
    for name, values in predictions.targets.items():
        unit = values.unit or "unit of the labels"
        found.append(Quantity(name, unit, values.true, values.pred, values.unit, 1.0))
    return found


def summary(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """`n`, `rmse`, `mae`, `max` of the errors, and `r2`, the share of the variance that is explained."""
    errors = predicted - true
    variance = float(np.mean((true - true.mean()) ** 2))
    mean_square = float(np.mean(errors**2))
    return {
        "n": float(errors.size),
        "rmse": mean_square**0.5,
        "mae": float(np.mean(np.abs(errors))),
        "max": float(np.max(np.abs(errors))),
        "r2": 1 - mean_square / variance if variance > 0 else float("nan"),
    }


def parity_plot(predictions: Predictions, name: str) -> Figure | None:
    """One column per label: predicted over reference above, residuals below; None without labels."""
    columns = quantities(predictions)
    if not columns:
        return None
    with plot_style():
        figure = new_figure(4.5 * len(columns), 6.2)
        grid = figure.subplots(2, len(columns), squeeze=False, height_ratios=(3, 1), sharex="col")
        for column, quantity in enumerate(columns):
            _draw(grid[0, column], grid[1, column], quantity)
        figure.suptitle(f"{name}: {len(predictions)} structures", x=0.01, ha="left", fontsize=12)
    return figure


def _draw(upper: Axes, lower: Axes, quantity: Quantity) -> None:
    true, predicted = quantity.true.ravel(), quantity.predicted.ravel()
    numbers = summary(true, predicted)
    residuals = (predicted - true) * quantity.residual_factor
    if true.size > MAX_POINTS:
        kept = np.random.default_rng(0).choice(true.size, MAX_POINTS, replace=False)
        true, predicted, residuals = true[kept], predicted[kept], residuals[kept]

    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    upper.plot(limits, limits, color=GREY, linewidth=1.0, zorder=1)
    _scatter(upper, true, predicted)
    upper.set(xlim=limits, ylim=limits, ylabel=f"predicted ({quantity.unit})")
    upper.set_title(quantity.title)
    factor, unit = quantity.residual_factor, quantity.residual_unit
    text = "\n".join(
        (
            f"R²    {numbers['r2']:.5f}",
            f"RMSE  {factor * numbers['rmse']:.3g} {unit}",
            f"MAE   {factor * numbers['mae']:.3g} {unit}",
            f"max   {factor * numbers['max']:.3g} {unit}",
            f"n     {int(numbers['n']):,}",
        )
    )
    upper.text(
        0.03,
        0.97,
        text,
        transform=upper.transAxes,
        va="top",
        family="DejaVu Sans Mono",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0},
    )

    lower.axhline(0.0, color=GREY, linewidth=1.0, zorder=1)
    _scatter(lower, true, residuals)
    reach = float(np.abs(residuals).max()) * 1.1 or 1.0
    lower.set(ylim=(-reach, reach), ylabel=f"error\n({quantity.residual_unit})")
    note = f"\n{quantity.note}" if quantity.note else ""
    lower.set_xlabel(f"reference ({quantity.unit}){note}")


def _scatter(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    density = _density(x, y)
    order = np.argsort(density)
    size = float(np.clip(2500 / np.sqrt(x.size) / 8, 4, 22))
    axis.scatter(
        x[order], y[order], c=np.log10(density[order]), cmap=DENSITY, s=size, linewidths=0, rasterized=True, zorder=2
    )


def _density(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many points share the bin of each point."""
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.ones(x.size)
    bins = int(np.clip(1.5 * np.sqrt(x.size), 8, 60))
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins)
    column = np.clip(np.searchsorted(x_edges, x, side="right") - 1, 0, bins - 1)
    row = np.clip(np.searchsorted(y_edges, y, side="right") - 1, 0, bins - 1)
    return np.maximum(counts[column, row], 1)
