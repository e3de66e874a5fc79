"""The page docs/performance.md and its plots, from the history of the peer benchmark: no number is written by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peer_history as history
from peer_cases import LIBRARIES, MODELS, Case, all_cases
from peer_history import Record
from peer_plots import write_plots

Results = list[tuple[Case, dict[str, Record]]]
"""Cases of the table that have been measured, with the records of one turn by library."""

SYSTEMS = {
    "molecule": "molecule, 27 atoms",
    "molecule_x5": "5 molecules of 27 atoms",
    "molecule_x32": "32 molecules of 27 atoms",
    "copper_500": "copper, 500 atoms",
    "copper_3000": "copper, 3000 atoms",
}
TIMESTEP_FS = 0.5


def write_page(path: Path, docs: Path) -> None:
    """`docs`/performance.md and `docs`/images/performance/*.png from the last machine of the history."""
    text, results = page(path)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "performance.md").write_text(text, encoding="utf-8")
    write_plots(results, docs / "images" / "performance")


def page(path: Path) -> tuple[str, Results]:
    """The text, and what it is made of."""
    records = history.read(path)
    if not records:
        raise SystemExit(f"{path}: no records; expected what `python benchmarks/peers.py` writes")
    machine = records[-1]["machine"]
    facts = json.loads(path.with_name("machines.json").read_text())[machine]
    found = history.latest(records, machine)
    results = [(case, found[tuple(case.key.values())]) for case in all_cases() if tuple(case.key.values()) in found]
    parts = {
        "plot of ratios": image(results, "time", "ratios", "Times of other libraries, divided by those of equijax"),
        "plot of starts": image(results, "start", "starts", "Wall time until the first result"),
        "plot of memory": image(results, "start", "memory", "Peak memory beyond the imports"),
        "machine": machine_table(facts, results),
        "versions": versions_table(results),
        "forces": times_section(results, "forces", ("molecule", "copper_500", "copper_3000")),
        "batches": times_section(results, "forces", ("molecule_x32",)),
        "training": times_section(results, "train", ("molecule_x5",)),
        "steps": steps_table(results),
        "neighbors": neighbors_table(results),
        "starts": starts_table(results),
        "memory": memory_table(results),
        "parameters": parameters_table(results),
        "failures": failures(results),
        "missing": missing(results),
    }
    template = Path(__file__).with_name("performance_template.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        marker = f"<!-- {name} -->\n"
        if template.count(marker) != 1:
            raise SystemExit(f"performance_template.md: {marker.strip()} has to be there once")
        template = template.replace(marker, part)
    return template, results


def image(results: Results, measure: str, name: str, caption: str) -> str:
    """The line that shows a plot of `write_plots`, when there is something to draw."""
    there = any(case.measure == measure and case.dtype == "float32" for case, _ in results)
    return f"![{caption}](images/performance/{name}.png)\n" if there else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; nothing where there are no rows."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n" if rows else "Not measured yet.\n"


def number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 123, 12,300."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(times: dict[str, float]) -> str:
    """Median, and the quartiles in small print."""
    return f"{number(times['median'])} ({number(times['q1'])} to {number(times['q3'])})"


def own(results: dict[str, Record]) -> Record:
    """The record of equijax that the others are divided by, the first in the order of the table; or a failed one."""
    there = (results[name] for name in LIBRARIES if name in results and name.startswith("equijax"))
    return next(there, {"failed": "not measured"})


def ratio(record: Record, reference: Record) -> str:
    return f"{record['cpu_ms']['median'] / reference['cpu_ms']['median']:.2f}"


def cell(name: str, results: dict[str, Record]) -> str:
    record = results.get(name)
    if record is None:
        return ""
    if "failed" in record:
        return "failed"
    reference = own(results)
    text = spread(record["cpu_ms"])
    return text if record is reference or "failed" in reference else f"{text}, **{ratio(record, reference)}**"


def described(case: Case) -> list[str]:
    return [case.model, SYSTEMS[case.system], case.dtype, case.allocator]


def families(results: Results) -> Iterator[tuple[tuple[str, ...], Results]]:
    """Cases with the same libraries together."""
    for libraries in dict.fromkeys(case.libraries for case, _ in results):
        yield libraries, [(case, found) for case, found in results if case.libraries == libraries]


def times_section(results: Results, task: str, systems: tuple[str, ...]) -> str:
    """A table per family of models: quartiles, and how many times the median of equijax."""
    chosen = [(c, r) for c, r in results if c.measure == "time" and c.task == task and c.system in systems]
    chosen.sort(key=lambda item: (list(MODELS).index(item[0].model), item[0].dtype, item[0].allocator))
    parts = []
    for libraries, members in families(chosen):
        head = ["model", "system", "precision", "allocator", *libraries]
        rows = [[*described(case), *(cell(name, found) for name in libraries)] for case, found in members]
        parts.append(table(head, rows))
    return "\n".join(parts) or "Not measured yet.\n"


def steps_table(results: Results) -> str:
    """Of whole MD steps, with ns/day of the compiled engine."""
    chosen = [(case, found) for case, found in results if case.task == "steps"]
    rows = []
    for case, found in chosen:
        reference = own(found)
        speed = "" if "failed" in reference else f"{TIMESTEP_FS * 86.4 / reference['cpu_ms']['median']:.3g}"
        rows.append([SYSTEMS[case.system], case.allocator, *(cell(name, found) for name in case.libraries), speed])
    libraries = chosen[0][0].libraries if chosen else ()
    return table(["system", "allocator", *libraries, "ns/day of equijax, jit"], rows)


def neighbors_table(results: Results) -> str:
    """One row per list; plain medians with quartiles."""
    chosen = [(case, found) for case, found in results if case.task == "neighbors"]
    libraries = chosen[0][0].libraries if chosen else ()
    rows = []
    for name in libraries:
        cells = []
        for _, found in chosen:
            record = found.get(name, {})
            cells.append("failed" if "failed" in record else spread(record["cpu_ms"]) if record else "")
        rows.append([name, *cells])
    heads = [f"{SYSTEMS[case.system]}, {next(iter(found.values()))['edges']:,} edges" for case, found in chosen]
    return table(["list", *heads], rows)


def started(results: Results) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The first cells of a row, and the record, of every library that was started for a case."""
    for case, found in results:
        if case.measure != "start":
            continue
        task = "training step" if case.task == "train" else "forces"
        for name in case.libraries:
            if name in found:
                yield [case.model, f"{task}, {SYSTEMS[case.system]}", name], found[name]


def starts_table(results: Results) -> str:
    """Seconds from the start of a process to its first result: wall and processor time, empty and filled caches."""
    rows = []
    for row, record in started(results):
        if "failed" in record:
            continue
        for caches in ("empty", "filled"):
            starts = [start for start in record["starts"] if start["caches"] == caches]
            imports, first = ([median(starts, f"{part}_{clock}_s") for clock in ("wall", "cpu")]
                              for part in ("import", "first"))  # fmt: skip
            row.append(f"{imports[0]:.1f} + {first[0]:.1f} ({imports[1]:.1f} + {first[1]:.1f})")
        rows.append(row)
    return table(["model", "first result", "library", "empty caches, s", "filled caches, s"], rows)


def memory_table(results: Results) -> str:
    """MB of a process after its imports, what it took beyond them until the first result and in later calls, and the
    whole at most."""
    rows = []
    for row, record in started(results):
        starts = [start for start in record["starts"] if start["before_mb"] is not None]
        if "failed" in record or not starts:
            rows.append([*row, "", "failed", "failed", ""])
            continue
        before = median(starts, "before_mb")
        peaks = [median(starts, f"{kind}_peak_mb") for kind in ("first", "later")]
        added = [number(max(0.0, peak - before)) for peak in peaks]
        rows.append([*row, number(before), *added, number(max(peaks))])
    columns = ["after imports", "+ to the first result", "+ later calls", "whole process at most"]
    return table(["model", "task and system", "library", *columns], rows)


def median(starts: list[dict[str, Any]], name: str) -> float:
    return statistics.median(start[name] for start in starts)


def parameters_table(results: Results) -> str:
    counts: dict[str, dict[str, int]] = {}
    for case, found in results:
        for name, record in found.items():
            if record.get("parameters") and case.task in ("forces", "train") and not name.endswith("frozen"):
                counts.setdefault(case.model, {})[name.split(",")[0]] = record["parameters"]
    rows = [[model, "; ".join(f"{n} {c:,}" for n, c in counts[model].items())] for model in MODELS if model in counts]
    return table(["model", "parameters"], rows)


def machine_table(facts: dict[str, Any], results: Results) -> str:
    records = [record for _, found in results for record in found.values()]
    loads = [record["load_average"] for record in records]
    commits = sorted({record["commit"] for record in records})
    rows = [[name, str(value)] for name, value in facts.items()]
    rows.append(["load average while measuring", f"{min(loads)} to {max(loads)}"])
    rows.append(["molecules", ", ".join(sorted({record["molecules"] for record in records}))])
    rows.append(["measured", f"{records[0]['date'][:10]}, commit {', '.join(commits)}"])
    return table(["", ""], rows)


def versions_table(results: Results) -> str:
    """Of every environment: the versions that matter for speed."""
    seen: dict[str, dict[str, str]] = {}
    for case, found in results:
        for name, record in found.items():
            if case.task in ("forces", "train") and record.get("versions"):
                seen[name.split(",")[0]] = record["versions"]
    rows = [[name, ", ".join(f"{p} {v}" for p, v in found.items() if p != name)] for name, found in seen.items()]
    return table(["library", "its environment"], [[f"{name} {seen[name].get(name, '')}", text] for name, text in rows])


def failures(results: Results) -> str:
    """Why a cell says so."""
    lines = []
    for case, found in results:
        for name, record in found.items():
            if "failed" in record:
                what = f"{name}, {case.model}, {case.task} of {SYSTEMS[case.system]}, {case.dtype}"
                lines.append(f"- {what}: {record['failed']} (it may allocate {record['memory_gb']:g} GB)\n")
    return "".join(dict.fromkeys(lines)) or "None.\n"


def missing(results: Results) -> str:
    """Cases of the table that this machine has not measured."""
    done = {tuple(case.key.values()) for case, _ in results}
    left = [str(case) for case in all_cases() if tuple(case.key.values()) not in done]
    if not left:
        return "Every case of the table has been measured.\n"
    return "Not measured on this machine: " + "; ".join(left) + ".\n"
