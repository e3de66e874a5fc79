"""Learning curves from the records of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.report.style import BLUE, GREEN, GREY, ORANGE, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# panel title, key of the record, factor, unit
_PANELS = (
    ("Loss", "loss", 1.0, ""),
    ("Energy per atom", "energy_rmse_per_atom", 1e3, "RMSE (meV/atom)"),
    ("Forces", "forces_rmse", 1e3, "RMSE (meV/Å)"),
    ("Stress", "stress_rmse", 1e3, "RMSE (meV/Å³)"),
    ("Hamiltonian", "hamiltonian_mae", 1.0, "MAE (µEh)"),
    ("Hamiltonian, same atom", "hamiltonian_mae_diagonal", 1.0, "MAE (µEh)"),
    ("Hamiltonian, two atoms", "hamiltonian_mae_off_diagonal", 1.0, "MAE (µEh)"),
)


def learning_curves(records: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss, errors and learning rate over epochs; None when there is nothing to draw.

    A training record of epoch e describes the steps of that epoch and is drawn at its end, e + 1, where the
    validation that follows it is; losses of different stages have different weights and are not connected.
    """
    train = [record for record in records if record.get("kind") == "train" and "epoch" in record]
    valid = [record for record in records if record.get("kind") == "valid" and "epoch" in record]
    if not train and not valid:
        return None
    panels = [panel for panel in _PANELS if any(_positive(r.get(panel[1])) for r in (*train, *valid))]
    has_rate = any(_positive(record.get("learning_rate")) for record in train)
    count = len(panels) + has_rate
    if not count:
        return None
    columns = min(count, 2)
    rows = -(-count // columns)
    with plot_style():
        figure = new_figure(5.2 * columns, 3.3 * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (title, key, factor, unit) in zip(axes, panels, strict=False):
            _draw(axis, train, key, factor, BLUE, "training", shift=1.0)
            _draw(axis, valid, key, factor, ORANGE, "validation (EMA)" if key == "loss" else "validation", width=2.2)
            # Validation on the frames that fine-tuning replays, where a run has them.
            _draw(axis, valid, f"replay_{key}", factor, GREEN, "validation, old data", width=2.2)
            axis.set(title=title, ylabel=unit or "loss", yscale="log", xlabel="epoch")
            _readable_log_ticks(axis)
            _mark_stages(axis, records)
            axis.legend(loc="upper right")
        if has_rate:
            axis = axes[len(panels)]
            _draw(axis, train, "learning_rate", 1.0, GREEN, "learning rate", shift=1.0, by_stage=False)
            axis.set(title="Learning rate", ylabel="learning rate", yscale="log", xlabel="epoch")
            _readable_log_ticks(axis)
            _mark_stages(axis, records)
        for axis in axes[count:]:
            axis.set_visible(False)
    return figure


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value) and value > 0


def _draw(
    axis: Axes,
    records: Sequence[dict[str, Any]],
    key: str,
    factor: float,
    color: str,
    label: str,
    *,
    shift: float = 0.0,
    width: float = 1.5,
    by_stage: bool = True,
) -> None:
    usable = [record for record in records if _positive(record.get(key))]
    stages = sorted({record.get("stage", 0) for record in usable}) if by_stage else [None]
    for stage in stages:
        part = [record for record in usable if stage is None or record.get("stage", 0) == stage]
        x = [float(record["epoch"]) + shift for record in part]
        y = [factor * float(record[key]) for record in part]
        marker = "o" if len(part) < 4 else None
        named = label if stage in (None, stages[0]) else None
        axis.plot(x, y, color=color, label=named, linewidth=width, marker=marker, markersize=4)


def _mark_stages(axis: Axes, records: Sequence[dict[str, Any]]) -> None:
    for record in records:
        if record.get("kind") == "event" and record.get("event") == "stage":
            axis.axvline(float(record["epoch"]), color=GREY, linestyle="--", linewidth=1.0)
            axis.annotate(
                f"stage {record.get('stage', '')}".strip(),
                (float(record["epoch"]), 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=GREY,
                fontsize=9,
            )


def _readable_log_ticks(axis: Axes) -> None:
    # Less than two decades leave a log axis with one labelled tick, or none.
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_ylim()
    decades = np.log10(high / low) if low > 0 else 5.0
    if decades < 2.5:
        subs = (1.0, 2.0, 5.0) if decades > 0.8 else tuple(np.arange(1.0, 10.0))
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
