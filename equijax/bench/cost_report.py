"""Predicted against measured: tables and a plot from the rows that benchmarks/scaling.py writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.bench.cost_model import Costs
from equijax.bench.roofline import PARTS, Machine, Rates, fit_machine
from equijax.errors import EquijaxError

Row = dict[str, Any]


def report(rows: Sequence[Row], fitted: Sequence[str], largest: int, plot: Path | None = None) -> str:
    """Markdown of everything that the rows allow.

    The fit takes the MD and training steps of the cases `fitted` with at most `largest` atoms; all others are held out.
    """
    rows = _least(rows)
    text = [constancy_table(rows)]
    machine, steps, used = fitted_machine(rows, fitted, largest)
    text += [machine_table(machine), prediction_table(steps, used, machine)]
    if plot is not None:
        draw(plot, steps, used, machine)
    return "\n\n".join(text)


def fitted_machine(rows: Sequence[Row], fitted: Sequence[str], largest: int) -> tuple[Machine, list[Row], list[bool]]:
    """The machine, the steps whose costs were counted, and which of them the fit has seen."""
    rates = [row["rates"] for row in rows if row["task"] == "roofline"]
    steps = [row for row in rows if "counted" in row and not row["tuned"]]
    if not rates:
        raise EquijaxError("no rates of this machine among the rows; fix: `python benchmarks/scaling.py roofline`")
    used = [row["case"] in fitted and row["atoms"] <= largest for row in steps]
    chosen = [row for row, use in zip(steps, used) if use]
    machine = fit_machine(Rates(**rates[-1]), [costs_of(row) for row in chosen], [row["cpu_min_s"] for row in chosen])
    return machine, steps, used


def _least(rows: Sequence[Row]) -> list[Row]:
    """Of several measurements of one step the fastest; tuned and default allocators are different steps."""
    found: dict[Any, Row] = {}
    for row in rows:
        key = (row.get("case"), row["task"], row.get("atoms"), row.get("tuned"))
        if key not in found or row.get("cpu_min_s", 0.0) <= found[key].get("cpu_min_s", 0.0):
            found[key] = row
    return list(found.values())


def plan_table(costs: dict[str, dict[str, Costs]], machine: Machine) -> str:
    """Per model the cost of an MD step of 10^5 atoms and of training on 10^6 frames of 50 atoms, on one core.

    `costs[case]` has `small` and `fewer`, MD steps of 112 rows with 52 and 28 slots each, `large`, one of 10^5 rows,
    and `train`, a step of five frames.
    """
    head = [
        "model",
        "kFLOP per slot",
        "and per atom",
        "kB per slot",
        "10^5 atoms: GFLOP",
        "temporary GiB",
        "s per step",
    ]
    head += ["training step of 5 frames: GFLOP", "temporary MiB", "ms", "epoch of 10^6 frames, core hours"]
    lines = []
    for case, found in costs.items():
        small, large, train = found["small"], found["large"], found["train"]
        step = machine.seconds(train)
        per_slot = (small.flops - found["fewer"].flops) / (112 * 24)
        bytes_per_slot = (small.bytes_moved - found["fewer"].bytes_moved) / (112 * 24)
        lines.append(
            [
                case,
                f"{per_slot / 1e3:.3g}",
                f"{(small.flops / 112 - 52 * per_slot) / 1e3:.3g}",
                f"{bytes_per_slot / 1e3:.3g}",
                f"{large.flops / 1e9:.3g}",
                f"{large.temporary_bytes / 2**30:.2g}",
                f"{machine.seconds(large):.3g}",
                f"{train.flops / 1e9:.3g}",
                f"{train.temporary_bytes / 2**20:.0f}",
                f"{1e3 * step:.3g}",
                f"{step * 200_000 / 3600:.3g}",
            ]
        )
    return table(head, lines)


def costs_of(row: Row) -> Costs:
    return Costs(**row["counted"])


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def constancy_table(rows: Sequence[Row]) -> str:
    """Least processor time per atom and per edge slot against the number of atoms."""
    timed = [row for row in rows if row["task"] != "roofline"]
    sizes = sorted({row["atoms"] for row in timed})
    lines = []
    for case, task, tuned in dict.fromkeys((row["case"], row["task"], row["tuned"]) for row in timed):
        own = {row["atoms"]: row for row in timed if (row["case"], row["task"], row["tuned"]) == (case, task, tuned)}
        if len(own) < 3:
            continue
        label = f"{task}, tuned" if own[min(own)].get("tuned") else task
        for what, per in (("µs per atom", lambda row: 1e6 * row["cpu_min_s"] / row["atoms"]),
                          ("ns per slot", lambda row: 1e9 * row["cpu_min_s"] / row["slots"])):  # fmt: skip
            values = [per(own[size]) if size in own else None for size in sizes]
            known = [value for value in values if value is not None]
            lines.append(
                [
                    case,
                    label,
                    what,
                    *("" if v is None else f"{v:.0f}" for v in values),
                    f"{max(known) / min(known):.2f}",
                ]
            )
    return table(["case", "step", "", *map(str, sizes), "largest / smallest"], lines)


def machine_table(machine: Machine) -> str:
    lines = [
        [part.replace("_", " "), f"{getattr(machine.rates, part):.3g}", f"{machine.efficiencies[part]:.2f}"]
        for part in PARTS
    ]
    return table(["part", "rate per second", "fitted efficiency"], lines)


def prediction_table(steps: Sequence[Row], used: Sequence[bool], machine: Machine) -> str:
    """Ratios of predicted to measured: operations and temporary memory of the compiler's own count, and time."""
    lines = []
    for row, use in sorted(zip(steps, used), key=lambda pair: (pair[0]["task"], pair[0]["case"], pair[0]["atoms"])):
        costs = costs_of(row)
        lines.append(
            [
                row["case"],
                row["task"],
                str(row["atoms"]),
                f"{costs.flops / 1e9:.3g}",
                _ratio(costs.flops, row["xla_flops"]),
                f"{row['xla_temp_bytes'] / 2**20:.0f}",
                _ratio(costs.temporary_bytes, row["xla_temp_bytes"]),
                f"{1e3 * row['cpu_s']:.3g}",
                _ratio(machine.seconds(costs), row["cpu_min_s"]),
                "fit" if use else "held out",
            ]
        )
    head = ["case", "step", "atoms", "GFLOP", "to XLA", "temporary MiB", "predicted to XLA", "least CPU ms"]
    head += ["predicted to measured", ""]
    found = table(head, lines)
    for kind, wanted in (("fitted", True), ("held out", False)):
        ratios = [machine.seconds(costs_of(row)) / row["cpu_min_s"] for row, use in zip(steps, used) if use is wanted]
        if ratios:
            found += (
                f"\n\n{kind}: {len(ratios)} steps, predicted / measured median {np.median(ratios):.2f}, "
                f"from {min(ratios):.2f} to {max(ratios):.2f}"
            )
    return found


def _ratio(predicted: float, measured: float | None) -> str:
    return f"{predicted / measured:.2f}" if measured else ""


def draw(path: Path, steps: Sequence[Row], used: Sequence[bool], machine: Machine) -> None:
    """Predicted against measured time, and temporary memory, on logarithmic axes."""
    from equijax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, plot_style, to_png
    from equijax.weights.atomic_file import write_atomically

    colours = {"mace": BLUE, "tensornet": ORANGE, "escn": GREEN, "equiformer": PURPLE, "tdn": "#E69F00"}
    panels = (
        ("time of a step, ms", lambda row: 1e3 * row["cpu_min_s"], lambda row: 1e3 * machine.seconds(costs_of(row))),
        ("temporary memory, MiB", lambda row: row["xla_temp_bytes"] / 2**20,
         lambda row: costs_of(row).temporary_bytes / 2**20),
    )  # fmt: skip
    with plot_style():
        figure = new_figure(10.5, 4.6)
        for number, (title, measured, predicted) in enumerate(panels):
            axes = figure.add_subplot(1, 2, number + 1)
            points = [(measured(row), predicted(row)) for row in steps]
            low, high = 0.7 * min(map(min, points)), 1.4 * max(map(max, points))
            axes.fill_between([low, high], [low / 1.5, high / 1.5], [low * 1.5, high * 1.5], color="#efefef", lw=0)
            axes.plot([low, high], [low, high], color=GREY, lw=1)
            for (x, y), row, use in zip(points, steps, used):
                colour = next(c for name, c in colours.items() if row["case"].startswith(name))
                marker = "o" if row["task"] == "md" else "s"
                axes.plot(x, y, marker, color=colour, mfc=colour if use else "white", ms=6, mew=1.4)
            axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title,
                     xlabel="measured" if number == 0 else "compiled", ylabel="predicted")  # fmt: skip
            if number == 0:
                for name, colour in colours.items():
                    axes.plot([], [], "o", color=colour, label=name.replace("equiformer", "equiformer_v2"))
                axes.plot([], [], "o", color=GREY, label="MD, fitted")
                axes.plot([], [], "o", color=GREY, mfc="white", label="MD, held out")
                axes.plot([], [], "s", color=GREY, label="training")
                axes.legend(loc="upper left", fontsize=8)
        write_atomically(path, to_png(figure))
