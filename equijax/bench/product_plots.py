"""The records of `equijax.bench.tensor_products` as pictures: time against L, time per coupling, reach against cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equijax.bench.tensor_products import BASELINE, TASKS, Record, clock
from equijax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, plot_style, to_png
from equijax.weights.atomic_file import write_atomically

# Okabe and Ito (2008), their yellow and sky blue last.
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000", "#8C510A")
_MARKERS = "osD^vP*X"
# Products of almost equal place would write on each other.
_LABEL_OFFSETS = ((5, -9), (-9, 4), (5, 4), (-9, -9))
_TITLES = {
    "siso": "l × l → l",
    "simo": "l × l → 0…2l",
    "mimo": "0…L × 0…L → 0…2L",
    "mimo_to_l": "0…L × 0…L → 0…L",
    "edges_mace": "messages, results to L of the harmonics",
    "edges_nequip": "messages, results to L of the nodes",
    "powers": "symmetric contraction",
}


def write_plots(directory: Path, records: Sequence[Record]) -> list[Path]:
    """PNG files of everything that `records` allow; a line needs two degrees, a Pareto plot two products."""
    series = _series(records)
    written = []
    with plot_style():
        for name, group in series.items():
            degrees = {record["sizes"]["lmax"] for record in group}
            if len(degrees) > 1:
                written.append(_save(directory / f"{name}_time.png", _lines(group, clock, "time of a call")))
                per_dof = [record for record in group if record["expressivity"]]
                if len({record["sizes"]["lmax"] for record in per_dof}) > 1:
                    figure = _lines(
                        per_dof, lambda r: clock(r) / r["expressivity"], "time per degree of freedom", TASKS[:2]
                    )
                    written.append(_save(directory / f"{name}_per_degree_of_freedom.png", figure))
            if len({record["product"] for record in group if record["expressivity"]}) > 1:
                written.append(_save(directory / f"{name}_pareto.png", _pareto(group)))
    return written


def _series(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records that differ in product, task and L only; the name says what they share."""
    groups: dict[str, list[Record]] = {}
    for record in timed_records(records):
        sizes = record["sizes"]
        shared = [f"{key}{sizes[key]}" for key in ("channels", "batch", "edges", "block") if sizes.get(key)]
        if record["case"] == "powers":
            shared.append(f"to{sizes['lmax_out']}")
        groups.setdefault("_".join([record["case"], *shared, record["dtype"]]), []).append(record)
    return groups


def timed_records(records: Sequence[Record]) -> list[Record]:
    """Those with times."""
    return [record for record in records if not record["refused"]]


def _style_of(products: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colours by order; peers, whose records are of another kind, are grey dashes told apart by their marker."""
    names = sorted(dict.fromkeys(products), key=lambda name: (name != BASELINE, name))
    return {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5.5}
        for i, name in enumerate(names)
    }


def _styles(group: Sequence[Record]) -> dict[str, dict[str, Any]]:
    own = _style_of([record["product"] for record in group if record["kind"] == "equijax"])
    peers = sorted({record["product"] for record in group if record["kind"] == "peer"})
    for i, name in enumerate(peers):
        own[name] = {"color": GREY, "marker": "x+1|"[i % 4], "linestyle": "--", "linewidth": 1.2, "markersize": 7}
    return own


def _title(group: Sequence[Record]) -> str:
    first = group[0]
    sizes = first["sizes"]
    shared = [f"{sizes['channels']} channels"]
    shared += [f"{sizes[key]} {text}" for key, text in (("batch", "products"), ("edges", "edges")) if key in sizes]
    return f"{_TITLES[first['case']]}; {', '.join(shared)}, {first['dtype']}"


def _show_times(axis: Any) -> None:
    """Ticks of a logarithmic axis as 20 µs, 1 ms."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(lambda value, _: _short(value))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)):
        if value * factor >= 0.999:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.1g} ns"


def _lines(group: Sequence[Record], value: Callable[[Record], float], label: str, tasks: Sequence[str] = TASKS) -> Any:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.7 * len(tasks), 3.9)
    axes = figure.subplots(1, len(tasks), sharey=True)
    for ax, task in zip(axes, tasks):
        for product, style in _styles(group).items():
            mine = sorted(
                (record for record in group if record["product"] == product and record["task"] == task),
                key=lambda record: record["sizes"]["lmax"],
            )
            if mine:
                ax.plot([r["sizes"]["lmax"] for r in mine], [value(r) for r in mine], label=product, **style)
        ax.set_yscale("log")
        ax.set_xlabel("l" if group[0]["case"] in ("siso", "simo") else "L")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.text(0.03, 0.97, task, transform=ax.transAxes, va="top", weight="bold")
        _show_times(ax.yaxis)
        ax.margins(y=0.14)
    axes[0].set_ylabel(label)
    return _finished(figure, axes, group)


def _pareto(group: Sequence[Record]) -> Any:
    """Expressivity against time: points of one product joined by growing L; the upper left is the better corner."""
    tasks = TASKS[:2]
    figure = new_figure(4.6 * len(tasks), 4.2)
    axes = figure.subplots(1, len(tasks), sharey=True)
    for ax, task in zip(axes, tasks):
        for (product, style), offset in zip(_styles(group).items(), itertools.cycle(_LABEL_OFFSETS)):
            found = [r for r in group if (r["product"], r["task"]) == (product, task) and r["expressivity"]]
            mine = sorted(found, key=lambda record: record["sizes"]["lmax"])
            if not mine:
                continue
            ax.plot([clock(r) for r in mine], [r["expressivity"] for r in mine], label=product, **style)
            for r in mine:
                place = (clock(r), r["expressivity"])
                text = f"{r['sizes']['lmax']}"
                ax.annotate(text, place, offset, textcoords="offset points", fontsize=7.5, color=style["color"])
        ax.set_xscale("log")
        ax.set_yscale("log", base=2)
        _show_times(ax.xaxis)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xlabel("time of a call; numbers are L")
        ax.text(0.03, 0.97, task, transform=ax.transAxes, va="top", weight="bold")
        ax.margins(0.12)
    axes[0].set_ylabel("expressivity, degrees of freedom")
    return _finished(figure, axes, group)


def _finished(figure: Any, axes: Any, group: Sequence[Record]) -> Any:
    lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=-(-len(lines) // -(-len(lines) // 5)))
    figure.suptitle(_title(group), x=0.01, ha="left", weight="bold", fontsize=11)
    return figure


def _save(path: Path, figure: Any) -> Path:
    return write_atomically(path, to_png(figure))
