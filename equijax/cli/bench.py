"""`equijax bench`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from equijax.cli.evaluate import assignments, check_dtype

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True, rich_markup_mode=None)


ModelOption = Annotated[list[str] | None, typer.Option("--model", help="Architecture; all by default.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Field of the model: --set hidden_irreps=32x0e+32x1o")
]
DTypeOption = Annotated[str, typer.Option(help="float32 or float64.")]
TuneOption = Annotated[bool, typer.Option("--tune-allocator", help="Keep freed memory (glibc only): faster, larger.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the timings to this file.")]


@app.callback()
def _kinds() -> None:
    # Without a callback typer would fold a single subcommand into its parent.
    pass


@app.command()
def models(
    model: ModelOption = None,
    set_: SetOption = None,
    dtype: DTypeOption = "float32",
    seconds: Annotated[float, typer.Option(help="Time per measurement.")] = 3.0,
    tune_allocator: TuneOption = False,
    json_file: JsonOption = None,
) -> None:
    """Time of an MD step (energy and forces) and of a training step (their gradient) per architecture."""
    from rich.console import Console
    from rich.table import Table

    from equijax.allocator import tune_cpu_allocator
    from equijax.bench.models import time_models
    from equijax.doctor import require_healthy_backend
    from equijax.models import MODELS

    check_dtype(dtype)
    _check_names("model", model, MODELS)
    fields = _fields(set_)
    tuned = tune_allocator and tune_cpu_allocator()
    require_healthy_backend()
    timings = time_models(tuple(model or ()), dtype, seconds, fields)  # type: ignore[arg-type]
    table = Table(box=None, pad_edge=False)
    for column in ("model", "case", "task", "atoms", "edges", "first s", "median ms", "best ms", "µs/atom"):
        table.add_column(column, justify="left" if column in ("model", "case", "task") else "right")
    for t in timings:
        milli = [f"{1e3 * t.median_s:.2f}", f"{1e3 * t.best_s:.2f}", f"{1e6 * t.median_s / t.atoms:.1f}"]
        table.add_row(t.model, t.case, t.task, str(t.atoms), str(t.edges), f"{t.first_s:.1f}", *milli)
    Console(highlight=False).print(table)
    _finish(timings, dtype, tuned, json_file)


@app.command()
def md(
    model: ModelOption = None,
    set_: SetOption = None,
    system: Annotated[
        list[str] | None, typer.Option("--system", help="ethanol, copper_108, copper_500; all by default.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option("--engine", help="jit, ase; both by default.")] = None,
    dtype: DTypeOption = "float32",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time per measurement.")] = 3.0,
    tune_allocator: TuneOption = False,
    json_file: JsonOption = None,
) -> None:
    """Time of a step of molecular dynamics, neighbour lists included, per architecture, system and engine."""
    from rich.table import Table

    from equijax.allocator import tune_cpu_allocator
    from equijax.bench.md import ENGINES, SYSTEMS, TIMESTEP_FS, StepTiming, time_md
    from equijax.bench.product_report import new_console
    from equijax.doctor import require_healthy_backend
    from equijax.models import MODELS

    check_dtype(dtype)
    _check_names("model", model, MODELS)
    _check_names("system", system, SYSTEMS)
    _check_names("engine", engine, ENGINES)
    fields = _fields(set_)
    tuned = tune_allocator and tune_cpu_allocator()
    require_healthy_backend()

    def progress(t: StepTiming) -> None:
        typer.echo(f"{t.model}, {t.system}, {t.engine}: {1e3 * t.median_s:.2f} ms", err=True)

    timings = time_md(
        tuple(model or ()),
        tuple(system or ()),
        tuple(engine or ENGINES),  # type: ignore[arg-type]
        dtype,  # type: ignore[arg-type]
        seconds,
        fields,
        progress,
    )
    table = Table(box=None, pad_edge=False)
    columns = ("model", "system", "engine", "atoms", "edges", "first s", "median ms", "25 %", "75 %", "best")
    for column in (*columns, "µs/atom", "ns/day"):
        table.add_column(column, justify="left" if column in columns[:3] else "right")
    for t in timings:
        times = (t.median_s, t.lower_quartile_s, t.upper_quartile_s, t.best_s)
        cells = [*(f"{1e3 * time:.2f}" for time in times), f"{1e6 * t.median_s / t.atoms:.1f}", f"{t.ns_per_day:.3g}"]
        table.add_row(t.model, t.system, t.engine, str(t.atoms), str(t.edges), f"{t.first_s:.1f}", *cells)
    new_console().print(table)
    typer.echo(f"NVE, steps of {TIMESTEP_FS:g} fs, wall time")
    _finish(timings, dtype, tuned, json_file)


def _check_names(kind: str, names: list[str] | None, known: Collection[str]) -> None:
    from equijax.errors import EquijaxError, did_you_mean

    for name in names or ():
        if name not in known:
            raise EquijaxError(f"there is no {kind} '{name}'; {did_you_mean(name, known)}")


def _fields(set_: list[str] | None) -> dict[str, Any]:
    from equijax.config.yaml import parse_value

    return {name: parse_value(value) for name, value in assignments(set_, "--set").items()}


def _finish(timings: Sequence[Any], dtype: str, tuned: bool, json_file: Path | None) -> None:
    """Say what the times depend on, and write both."""
    import dataclasses
    import json

    from equijax.doctor import describe_installation
    from equijax.weights.atomic_file import write_atomically

    facts = describe_installation() | {"allocator tuned": str(bool(tuned))}
    typer.echo(f"{dtype}, {facts['cores']} cores, jax {facts['jax']}, allocator tuned: {facts['allocator tuned']}")
    if json_file is not None:
        record = {"machine": facts, "timings": [dataclasses.asdict(timing) for timing in timings]}
        write_atomically(json_file, (json.dumps(record, indent=1) + "\n").encode())


@app.command("tensor-products")
def tensor_products(
    case: Annotated[
        str, typer.Option(help="all, nodes, edges or powers; or one of siso, simo, mimo, mimo_to_l.")
    ] = "all",
    product: Annotated[
        list[str] | None,
        typer.Option("--product", help="Tensor product, with options as in cp:rank=28; all by default."),
    ] = None,
    lmax: Annotated[
        str | None, typer.Option(help="Degrees, as 1,2,3.", show_default="nodes 1,2,3,4; edges 1,2; powers 3")
    ] = None,
    channels: Annotated[str, typer.Option(help="Numbers of channels.")] = "64",
    batch: Annotated[str, typer.Option(help="Products of features, or nodes to contract, per call.")] = "1000",
    edges: Annotated[str, typer.Option(help="Numbers of edges.")] = "1000,20000",
    neighbors: Annotated[int, typer.Option(min=1, help="Neighbours per receiver.")] = 40,
    block: Annotated[
        int, typer.Option(min=0, help="Receivers per block at most, made again in the backward pass; 0: all at once.")
    ] = 0,
    dtype: DTypeOption = "float32",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time per product and task.")] = 1.0,
    peers: Annotated[bool, typer.Option(help="Also time other libraries that are installed.")] = True,
    measures: Annotated[bool, typer.Option(help="Also compute expressivity and interactability.")] = True,
    tune_allocator: TuneOption = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Append a JSON line per measurement.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Directory for PNG files.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Ratios to the times in this file of an earlier run.")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Measure nothing; tables and plots of this file of an earlier run.")
    ] = None,
) -> None:
    """Speed, memory, cost, expressivity and equivariance error of tensor products, beside other libraries."""
    import os
    import sys

    from equijax.errors import EquijaxError, did_you_mean

    if "jax" not in sys.modules:
        # Compile times are part of the result, and a cache would answer in their place.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from equijax.allocator import tune_cpu_allocator
    from equijax.bench import tensor_products as bench
    from equijax.bench.product_report import Report, show_tables
    from equijax.doctor import require_healthy_backend

    check_dtype(dtype)
    if case not in bench.CASE_NAMES:
        raise EquijaxError(f"there is no case '{case}'; {did_you_mean(case, bench.CASE_NAMES)}")
    sizes = bench.Sizes(
        case=case,
        lmax=_integers(lmax, "--lmax", least=0) if lmax is not None else (),
        channels=_integers(channels, "--channels"),
        batch=_integers(batch, "--batch"),
        edges=_integers(edges, "--edges"),
        neighbors=neighbors,
        block=block,
    )
    products = dict(map(bench.parse_product, product)) if product else bench.all_products()
    earlier = None if compare is None else bench.read_records(compare)
    if json_file is not None and json_file.is_dir():
        raise EquijaxError(f"{json_file}: is a directory; expected a file name")
    if replay is None:
        tuned = tune_allocator and tune_cpu_allocator()
        require_healthy_backend()
        with Report() as report:
            records = report.measure(
                sizes, products, dtype, seconds, peers=peers, measures=measures, tuned=tuned, json_file=json_file
            )
    else:
        records = bench.read_records(replay)
        show_tables(records)
    if earlier is not None:
        from equijax.bench.product_report import show_comparison

        show_comparison(records, earlier, str(compare))
    if plots is not None:
        from equijax.bench.product_plots import write_plots

        for path in write_plots(plots, records):
            typer.echo(f"wrote {path}")


def _integers(text: str, option: str, least: int = 1) -> tuple[int, ...]:
    """The numbers of a list such as 1,2,3."""
    from equijax.errors import located

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= least for word in words):
        raise located(f"is '{text}'", key=option, expected=f"whole numbers of at least {least}, as in 1,2,3")
    return tuple(dict.fromkeys(map(int, words)))
