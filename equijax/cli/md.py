"""`equijax md`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from equijax.cli.evaluate import BackendOption, MatmulOption, check_dtype, executed
from equijax.cli.predict import read_images
from equijax.errors import located


def md(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    structure: Annotated[Path, typer.Argument(help="Start: the last structure of a file that ASE reads.")],
    output: Annotated[Path, typer.Option(help="Trajectory (.xyz, .traj or .h5); the other files go beside it.")],
    ensemble: Annotated[str, typer.Option(help="nve, langevin, nose-hoover, csvr, npt or npt-full.")] = "langevin",
    temperature: Annotated[float, typer.Option(help="K")] = 300.0,
    final_temperature: Annotated[
        float | None, typer.Option(help="K, reached in a straight line.", show_default="no ramp")
    ] = None,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    steps: Annotated[int, typer.Option(help="Steps in total.")] = 1000,
    friction: Annotated[float, typer.Option(help="1/fs, of the thermostat.")] = 0.01,
    pressure: Annotated[float, typer.Option(help="GPa, of npt.")] = 0.0,
    final_pressure: Annotated[
        float | None, typer.Option(help="GPa, reached in a straight line.", show_default="no ramp")
    ] = None,
    ramp_steps: Annotated[int | None, typer.Option(help="Steps of the ramps.", show_default="--steps")] = None,
    barostat_period: Annotated[float, typer.Option(help="fs, of npt.")] = 1000.0,
    replicas: Annotated[int, typer.Option(help="Copies with seeds of their own, run together.")] = 1,
    seed: Annotated[int, typer.Option(help="Of velocities and thermostat.")] = 0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start with the velocities of the structure.")
    ] = False,
    write_every: Annotated[int, typer.Option(help="Steps between frames of the trajectory.")] = 20,
    log_every: Annotated[int, typer.Option(help="Steps between log entries.")] = 10,
    restart: Annotated[bool, typer.Option("--restart", help="Continue a run that was stopped, bit for bit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="jit: the whole loop compiled; ase: step by step.", show_default="jit where it can"),
    ] = None,
    max_force_uncertainty: Annotated[
        float | None,
        typer.Option(
            help="eV/Å; stop where that of an atom exceeds it (models with uncertainties).", show_default="none"
        ),
    ] = None,
    boost: Annotated[
        Path | None,
        typer.Option(
            help="Surrogate of MODEL (`equijax boost`): MODEL itself every few steps only.", show_default="none"
        ),
    ] = None,
    boost_interval: Annotated[
        int | None, typer.Option(help="Steps from one evaluation of MODEL to the next.", show_default="the surrogate's")
    ] = None,
    dispersion: Annotated[
        str | None,
        typer.Option(help="Add D3, such as d3bj:pbe (extra dispersion).", show_default="that of the model"),
    ] = None,
    backend: BackendOption = None,
    matmul_precision: MatmulOption = None,
    report: Annotated[bool, typer.Option(help="Write a page about the run.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Molecular dynamics with a trained model."""
    check_dtype(dtype)
    if not model.is_file():
        raise located("there is no such model file", file=model)
    if boost is None and boost_interval is not None:
        raise located("needs --boost, the file of a surrogate", file="equijax md", key="--boost-interval")
    start = read_images(structure)[-1]

    from equijax.doctor import require_healthy_backend
    from equijax.md import run_md
    from equijax.md.boost import Boost
    from equijax.weights import load_potential as load
    from equijax.weights.boost_file import load_surrogate

    require_healthy_backend()
    surrogate = None if boost is None else load_surrogate(boost)
    has_ramp = final_temperature is not None or final_pressure is not None
    potential = executed(load(model), backend, matmul_precision)
    summary = run_md(
        potential if dispersion is None else potential.with_dispersion(dispersion),
        start,
        steps=steps,
        output=output,
        engine=engine,
        replicas=replicas,
        boost=None if surrogate is None else Boost(surrogate, boost_interval or surrogate.interval),
        write_every=write_every,
        log_every=log_every,
        restart=restart,
        overwrite=overwrite,
        dtype=dtype,
        on_log=None if quiet else Progress(steps, log_every),
        ensemble=ensemble,
        temperature=temperature,
        timestep_fs=timestep,
        friction_per_fs=friction,
        pressure_gpa=pressure,
        final_temperature=final_temperature,
        final_pressure_gpa=final_pressure,
        ramp_steps=ramp_steps or (steps if has_ramp else None),
        barostat_period_fs=barostat_period,
        max_force_uncertainty=max_force_uncertainty,
        seed=seed,
        velocities="keep" if keep_velocities else "new",
    )
    if not quiet:
        typer.echo(describe(summary))
    if report:
        from equijax.md.report import write_md_report

        page = write_md_report(summary)
        if not quiet:
            typer.echo(f"report: {page}")
    if summary["interrupted"]:
        typer.echo(f"{summary['interrupted']}: stopped at step {summary['steps']}; continue with --restart", err=True)
        raise typer.Exit(128 + signal.Signals[summary["interrupted"]].value)


class Progress:
    """Prints about twenty log entries of a run, evenly spaced."""

    def __init__(self, steps: int, log_every: int) -> None:
        self._every = max(log_every, steps // 20)
        self._next = 0

    def __call__(self, record: dict[str, Any]) -> None:
        if record["step"] < self._next:
            return
        self._next = record["step"] + self._every
        typer.echo(
            f"step {record['step']:>8}  {record['time_ps']:8.3f} ps  {record['temperature']:7.1f} K  "
            f"potential {record['potential_energy']:.4f} eV  total {record['total_energy']:.4f} eV"
        )


def describe(summary: dict[str, Any]) -> str:
    """Two lines about a finished run."""
    lines = [
        f"{summary['time_ps']:.3f} ps of {summary['ensemble']}, mean temperature {summary['mean_temperature']:.0f} K, "
        f"engine {summary['engine']}, {summary['compile_count']} compilations; trajectory: {summary['trajectory']}"
    ]
    drift, residual = summary["drift_mev_per_atom_per_ps"], summary["drift_residual_mev_per_atom"]
    if drift is not None:
        lines.append(f"drift of the conserved energy {drift:+.2e} meV/atom/ps, residual {residual:.2e} meV/atom")
    if summary.get("ns_per_day"):
        lines.append(f"{summary['ns_per_day']:.3f} ns/day, {summary['us_per_atom_step']:.1f} µs per atom and step")
    return "\n".join(lines)
