"""What a user sees of the microbenchmark while it runs and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from equijax.bench.product_tables import by_case, comparison_table, refusals, times_table
from equijax.bench.tensor_products import Record, Sizes, append_records, machine_fingerprint, run_case
from equijax.errors import EquijaxError
from equijax.precision import DType

# A table must not be cut where no terminal says how wide it may be.
PIPED_WIDTH = 200


def new_console() -> Console:
    """Standard output; wide when it is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


class Report:
    """A live line on a terminal, a plain line per case elsewhere; the table of a case as soon as it is done."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or new_console()
        self._live = Live(console=self.console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Report:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def measure(
        self,
        sizes: Sizes,
        products: Mapping[str, Any],
        dtype: DType | str,
        seconds: float,
        *,
        peers: bool = True,
        measures: bool = True,
        tuned: bool = False,
        json_file: Path | None = None,
    ) -> list[Record]:
        """All cases; lines are added to `json_file` after each."""
        machine = machine_fingerprint() | {"allocator tuned": str(bool(tuned))}
        self.console.print(describe_machine(machine), soft_wrap=True)
        families = tuple(type(options).__mro__ for options in products.values())
        cases = [case for case in sizes.cases() if any(case.family in family for family in families)]
        if not cases:
            raise EquijaxError(f"none of {', '.join(products)} has the case '{sizes.case}'")
        everything: list[Record] = []
        for number, case in enumerate(cases, 1):
            heading = f"[{number}/{len(cases)}]"

            def progress(text: str, heading: str = heading, name: str = case.name) -> None:
                if self.console.is_terminal:
                    self._live.update(Text(f"{heading} {name}: {text} ..."))

            records = run_case(
                case,
                products,
                dtype,  # type: ignore[arg-type]
                seconds,
                peers=peers,
                measures=measures,
                report=progress,
            )
            records = [record | {"machine": machine} for record in records]
            if json_file is not None:
                append_records(json_file, records)
            show_tables(records, self.console, heading + " ")
            everything += records
        return everything


def describe_machine(machine: Mapping[str, str]) -> str:
    """What the times depend on, in one line."""
    peers = [f"{name.removeprefix('peer ')} {machine[name]}" for name in machine if name.startswith("peer ")]
    parts = [
        machine["processor"],
        f"device {machine['device']}",
        f"{machine['cores']} cores",
        f"OMP_NUM_THREADS={machine['OMP_NUM_THREADS'] or 'unset'}",
        f"jax {machine['jax']}",
        f"XLA_FLAGS={machine['XLA_FLAGS']!r}",
        f"allocator {machine['allocator']} (tuned: {machine['allocator tuned']})",
        *peers,
    ]
    return ", ".join(parts)


def show_tables(records: Sequence[Record], console: Console | None = None, heading: str = "") -> None:
    """Times per case, then what was refused and why."""
    console = console or new_console()
    for case, members in by_case(records).items():
        console.print(Text(f"\n{heading}{case}", style="bold"), soft_wrap=True)
        if any(not member["refused"] for member in members):
            console.print(times_table(members))
        for line in refusals(members):
            console.print(Text(f"refused: {line}", style="dim"), soft_wrap=True)


def show_comparison(records: Sequence[Record], earlier: Sequence[Record], name: str) -> None:
    """Ratios to earlier times."""
    console = new_console()
    table, matched = comparison_table(records, earlier)
    console.print(Text(f"\ntime over the time in {name}, {matched} measurements in common", style="bold"))
    if matched:
        console.print(table)
