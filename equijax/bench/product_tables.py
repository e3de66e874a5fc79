"""The records of `equijax.bench.tensor_products` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from equijax.bench.tensor_products import BASELINE, TASKS, Record, clock, record_key

if TYPE_CHECKING:
    from rich.table import Table

_SHORT = {"lmax": "L", "lmax_edge": "L edge", "lmax_out": "L out", "channels": "C", "correlation": "order"}
_COLUMNS = ("case", "product", "paths", "expr.", "equiv. error", "MFLOP", "temp MB", "compile s")


def describe_sizes(record: Record) -> str:
    """`mimo L=2 L out=4 C=64 batch=1000 float32`."""
    shown = [f"{_SHORT.get(name, name)}={value}" for name, value in record["sizes"].items() if name != "block" or value]
    return " ".join([record["case"], *shown, record["dtype"]])


def by_case(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of equal case, sizes and dtype."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(describe_sizes(record), []).append(record)
    return groups


def timed(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """Records with times, by product and task."""
    return {(r["product"], r["task"]): r for r in records if not r["refused"]}


def seconds(value: float) -> str:
    """Three digits with a unit.

    >>> seconds(0.00123), seconds(4.56e-5)
    ('1.23 ms', '45.6 µs')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            digits = 2 if value * factor < 10 else 1 if value * factor < 100 else 0
            return f"{value * factor:.{digits}f} {unit}"
    raise AssertionError


def _numbers(record: Record) -> list[str]:
    def shown(value: float | None, form: str, scale: float = 1.0) -> str:
        return "-" if value is None else format(value * scale, form)

    return [
        shown(record["path_count"], ".0f"),
        shown(record["expressivity"], ".0f"),
        shown(record["equivariance_error"], ".0e"),
        shown(record["xla_flops"], ".3g", 1e-6),
    ]


def _table(groups: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in groups:
        table.add_column(name, justify="left" if name in ("product", "case") else "right")
    return table


def times_table(records: Sequence[Record]) -> Table:
    """One case: median times of every product with their ratio to Clebsch-Gordan's, below 1 when faster."""
    found = timed(records)
    table = _table(["product", *(text for task in TASKS for text in (task, "ratio")), *_COLUMNS[2:]])
    for product in dict.fromkeys(r["product"] for r in records):
        mine = [found.get((product, task)) for task in TASKS]
        if not any(mine):
            continue
        cells = []
        for task, record in zip(TASKS, mine):
            base = found.get((BASELINE, task))
            cells.append(seconds(clock(record)) if record else "refused")
            cells.append(f"{clock(record) / clock(base):.2f}" if record and base else "-")
        some = next(r for r in mine if r)
        temp = [r["temp_bytes"] for r in mine if r and r["temp_bytes"] is not None]
        compiled = sum(r["compile_s"] for r in mine if r)
        table.add_row(product, *cells, *_numbers(some), f"{max(temp, default=0) / 1e6:.2f}", f"{compiled:.1f}")
    return table


def refusals(records: Sequence[Record]) -> list[str]:
    """`product, task: reason` of everything that has no times."""
    return [f"{r['product']}{', ' + r['task'] if r['task'] else ''}: {r['refused']}" for r in records if r["refused"]]


def comparison_table(records: Sequence[Record], earlier: Sequence[Record]) -> tuple[Table, int]:
    """Ratios of these times to earlier ones (below 1: faster than before), and how many measurements matched."""
    before = {record_key(r): r for r in earlier if not r["refused"]}
    table = _table(["case", "product", *TASKS])
    matched = 0
    for case, members in by_case(records).items():
        found = timed(members)
        for product in dict.fromkeys(r["product"] for r in members):
            cells = [_ratio(found.get((product, task)), before) for task in TASKS]
            matched += sum(cell is not None for cell in cells)
            if any(cell is not None for cell in cells):
                table.add_row(case, product, *("-" if cell is None else f"{cell:.2f}" for cell in cells))
    return table, matched


def _ratio(record: Record | None, before: dict[tuple, Record]) -> float | None:
    if record is None or record_key(record) not in before:
        return None
    return clock(record) / clock(before[record_key(record)])
