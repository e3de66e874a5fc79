"""Plots of the peer benchmark: ratios of times, starts, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peer_cases import LIBRARIES, MODELS, Case
from peer_history import Record

from equijax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, plot_style, to_png
from equijax.weights.atomic_file import write_atomically

COLOURS = {
    "equijax": BLUE,
    "equijax, frozen": "#56B4E9",
    "mace-torch": ORANGE,
    "mace-torch, TorchScript": "#E69F00",
    "mlip": GREEN,
    "torchmd-net": PURPLE,
    "nequix": "#8C510A",
    "equijax, jit": BLUE,
    "equijax, jit, frozen": "#56B4E9",
    "equijax, ASE": GREY,
    "mace-torch, ASE": ORANGE,
    "mlip, JAX-MD": GREEN,
}
"""Okabe and Ito (2008), and a brown."""
SHORT = {
    "molecule": "27 atoms",
    "molecule_x5": "5 x 27 atoms",
    "molecule_x32": "32 x 27 atoms",
    "copper_500": "500 atoms",
    "copper_3000": "3000 atoms",
}
TASKS = {"forces": "forces", "train": "training step", "steps": "MD step"}

Results = list[tuple[Case, dict[str, Record]]]


def write_plots(results: Results, folder: Path) -> list[Path]:
    """PNG files of everything that has been measured."""
    pictures = {"ratios": ratios, "starts": starts, "memory": memory}
    written = []
    with plot_style():
        for name, draw in pictures.items():
            figure = draw(results)
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                written.append(write_atomically(folder / f"{name}.png", to_png(figure, dpi=110)))
    return written


def label(case: Case) -> str:
    return f"{case.model}, {TASKS[case.task]}, {SHORT[case.system]}"


def ordered(results: Results, measure: str) -> Results:
    """Of one measure in float32, by model, task and system as in the tables of cases."""
    kept = [(c, r) for c, r in results if c.measure == measure and c.dtype == "float32" and c.task in TASKS]
    places = {name: list(names).index for name, names in (("model", MODELS), ("task", TASKS), ("system", SHORT))}
    return sorted(kept, key=lambda item: tuple(place(getattr(item[0], name)) for name, place in places.items()))


def ratios(results: Results) -> Any:
    """How many times the processor time of equijax each library takes; a panel per allocator."""
    chosen = [(c, r) for c, r in ordered(results, "time") if "cpu_ms" in r.get(reference(c), {})]
    allocators = list(dict.fromkeys(case.allocator for case, _ in chosen))
    labels = list(dict.fromkeys(label(case) for case, _ in chosen))
    if not labels:
        return None
    figure = new_figure(5.0 + 3.2 * len(allocators), 1.2 + 0.42 * len(labels))
    axes = figure.subplots(1, len(allocators), sharex=True, sharey=True, squeeze=False)[0]
    for axis, allocator in zip(axes, allocators):
        for case, found in chosen:
            if case.allocator != allocator:
                continue
            own = found[reference(case)]["cpu_ms"]["median"]
            others = [n for n in case.libraries if n != reference(case) and "cpu_ms" in found.get(n, {})]
            bars(
                axis, labels.index(label(case)), others, [found[n]["cpu_ms"]["median"] / own for n in others], start=1.0
            )
        axis.axvline(1.0, color=BLUE, linewidth=1.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("times equijax (line)")
        axis.set_title(f"allocator: {allocator}")
        named_rows(axis, labels)
    return finished(figure, [name for name in COLOURS if any(name in found for _, found in chosen)])


def reference(case: Case) -> str:
    return next(name for name in case.libraries if name.startswith("equijax"))


def starts(results: Results) -> Any:
    """Wall seconds until the first result: imports pale, the rest full; with empty caches and with filled ones."""
    return of_starts(
        results,
        "wall time until the first result, s",
        {f"caches {caches}": lambda r, caches=caches: start_seconds(r, caches) for caches in ("empty", "filled")},
    )


def start_seconds(record: Record, caches: str) -> tuple[float, float]:
    """(imports, total)"""
    chosen = [start for start in record["starts"] if start["caches"] == caches]
    imports, first = (statistics.median(s[f"{part}_wall_s"] for s in chosen) for part in ("import", "first"))
    return imports, imports + first


def memory(results: Results) -> Any:
    """MB above those after the imports."""

    def peak(record: Record, kind: str) -> tuple[float, float]:
        values = [s[f"{kind}_peak_mb"] - s["before_mb"] for s in record["starts"] if s["before_mb"] is not None]
        return 0.0, statistics.median(values) if values else 0.0

    panels = {"to the first result": lambda r: peak(r, "first"), "later calls": lambda r: peak(r, "later")}
    return of_starts(results, "peak memory beyond the imports, MB", panels)


def of_starts(results: Results, axis_label: str, panels: dict[str, Callable[[Record], tuple[float, float]]]) -> Any:
    """A panel per entry, whose function gives (pale part, whole)."""
    chosen = ordered(results, "start")
    labels = [label(case) for case, _ in chosen]
    if not labels:
        return None
    figure = new_figure(4.6 + 3.2 * len(panels), 1.2 + 0.42 * len(labels))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, panels.items()):
        for row, (case, found) in enumerate(chosen):
            names = [n for n in case.libraries if "failed" not in found.get(n, {"failed": ""})]
            pairs = [values(found[name]) for name in names]
            bars(axis, row, names, [whole for _, whole in pairs])
            bars(axis, row, names, [first for first, _ in pairs], pale=True)
        axis.set_xlabel(axis_label)
        axis.set_title(title)
        named_rows(axis, labels)
    return finished(figure, [name for name in COLOURS if any(name in found for _, found in chosen)])


def bars(
    axis: Any, row: int, names: Sequence[str], ends: Sequence[float], start: float = 0.0, pale: bool = False
) -> None:
    """The bars of one case from `start`, in the order of the legend from top to bottom."""
    height = 0.8 / max(1, len(names))
    for place, (name, end) in enumerate(zip(names, ends)):
        y = row - 0.4 + height * (place + 0.5)
        look = {"color": "white", "alpha": 0.55} if pale else {"color": COLOURS[name]}
        axis.barh(y, end - start, left=start, height=0.9 * height, linewidth=0, **look)


def named_rows(axis: Any, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.grid(visible=False, axis="y")


def finished(figure: Any, names: Sequence[str]) -> Any:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS.get(name, GREY), label=name) for name in names if name in LIBRARIES]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure
