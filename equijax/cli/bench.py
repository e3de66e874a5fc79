"""`equijax bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equijax.cli.evaluate import assignments, check_dtype

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _kinds() -> None:
    # Without a callback typer would fold a single subcommand into its parent.
    pass


@app.command()
def models(
    model: Annotated[list[str] | None, typer.Option("--model", help="Architecture; all by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the model: --set hidden_irreps=32x0e+32x1o")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    seconds: Annotated[float, typer.Option(help="Time per measurement.")] = 3.0,
    tune_allocator: Annotated[
        bool, typer.Option("--tune-allocator", help="Keep freed memory (glibc only): faster, larger.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the timings to this file.")] = None,
) -> None:
    """Time of an MD step (energy and forces) and of a training step (their gradient) per architecture."""
    import dataclasses
    import json

    from rich.console import Console
    from rich.table import Table

    from equijax.allocator import tune_cpu_allocator
    from equijax.bench.models import time_models
    from equijax.config.yaml import parse_value
    from equijax.doctor import describe_installation, require_healthy_backend
    from equijax.errors import EquijaxError, did_you_mean
    from equijax.models import MODELS

    check_dtype(dtype)
    for name in model or ():
        if name not in MODELS:
            raise EquijaxError(f"there is no model '{name}'; {did_you_mean(name, MODELS)}")
    tuned = tune_allocator and tune_cpu_allocator()
    require_healthy_backend()
    fields = {name: parse_value(value) for name, value in assignments(set_, "--set").items()}
    timings = time_models(tuple(model or ()), dtype, seconds, fields)  # type: ignore[arg-type]
    table = Table(box=None, pad_edge=False)
    for column in ("model", "case", "task", "atoms", "edges", "first s", "median ms", "best ms", "µs/atom"):
        table.add_column(column, justify="left" if column in ("model", "case", "task") else "right")
    for t in timings:
        milli = [f"{1e3 * t.median_s:.2f}", f"{1e3 * t.best_s:.2f}", f"{1e6 * t.median_s / t.atoms:.1f}"]
        table.add_row(t.model, t.case, t.task, str(t.atoms), str(t.edges), f"{t.first_s:.1f}", *milli)
    Console(highlight=False).print(table)
    facts = describe_installation() | {"allocator tuned": str(bool(tuned))}
    typer.echo(f"{dtype}, {facts['cores']} cores, jax {facts['jax']}, allocator tuned: {facts['allocator tuned']}")
    if json_file is not None:
        from equijax.weights.atomic_file import write_atomically

        record = {"machine": facts, "timings": [dataclasses.asdict(timing) for timing in timings]}
        write_atomically(json_file, (json.dumps(record, indent=1) + "\n").encode())
