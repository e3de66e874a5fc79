"""`equijax check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equijax.errors import located

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equijax.checks import ModelCheck, Row
    from equijax.potential.potential import Potential


def check(
    target: Annotated[Path, typer.Argument(help="Experiment file (YAML) or model file (.safetensors).")],
    data: Annotated[
        Path | None, typer.Option(help="Structures to check a model on; by default those beside it, or made ones.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Of a model: write a page with plots to this .html file.")] = None,
    steps: Annotated[int, typer.Option(min=5, help="Of a model: length of the run at constant energy.")] = 300,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a value of an experiment file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Audit the data and the plan of an experiment, or the physics of a model. Exit code 1 when a model fails."""
    if target.suffix == ".safetensors":
        _check_model(target, data, report, steps, json_file)
    elif target.suffix in (".yaml", ".yml"):
        for path, option in ((data, "--data"), (report, "--report")):
            if path is not None:
                raise located("is for models", key=option, expected=f"a model file (.safetensors), not {target.name}")
        _check_experiment(target, set_ or [], json_file)
    else:
        raise located("is not known", file=target, expected="an experiment file (.yaml) or a model (.safetensors)")


def _check_experiment(path: Path, overrides: list[str], json_file: Path | None) -> None:
    from equijax.experiment import load_experiment
    from equijax.train.preview import preview

    result = preview(load_experiment(path, overrides))
    typer.echo(result.text())
    _write_json(result.to_dict(), json_file)


def _check_model(path: Path, data: Path | None, report: Path | None, steps: int, json_file: Path | None) -> None:
    from equijax.cli.structure_files import check_output
    from equijax.doctor import require_healthy_backend
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.weights import load

    check_output(report, (".html",), overwrite=True, key="--report")
    require_healthy_backend()
    model = load(path)
    typer.echo(repr(model))
    if isinstance(model, HamiltonianModel):
        result = _check_hamiltonian_model(model, data)
    else:
        result = _check_potential(model, path, data, steps)
    _print(result.rows)
    typer.echo(f"\nstructures: {result.source}\nverdict: {result.verdict}")
    _write_json(result.to_json(), json_file)
    if report is not None:
        from equijax.checks import write_page

        typer.echo(f"report: {write_page(report, f'{path.name}: check', repr(model), result)}")
    if result.verdict == "fail":
        raise typer.Exit(1)


def _check_potential(potential: Potential, path: Path, data: Path | None, steps: int) -> ModelCheck:
    import dataclasses

    from rich.console import Console

    from equijax.checks import check_potential
    from equijax.checks.structures import stored_frames
    from equijax.cli.predict import read_images
    from equijax.structure import Structure

    if data is None:
        frames, source = stored_frames(path)
    else:
        images = [Structure.from_ase(image) for image in read_images(data)]
        frames = [dataclasses.replace(image, file=str(data), frame=i) for i, image in enumerate(images)]
        source = str(data)
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        return check_potential(potential, frames, source, steps=steps, on_step=lambda text: status.update(text))


def _check_hamiltonian_model(model: Any, data: Path | None) -> ModelCheck:
    from equijax.checks import ModelCheck, Row
    from equijax.hamiltonians.check import check_model

    if data is not None:
        raise located(
            "is for potentials", key="--data", expected="no structures: Hamiltonians are checked on made ones"
        )
    rows = [Row(name, deviation, limit, "relative") for name, deviation, limit in check_model(model)]
    return ModelCheck(rows, "a random molecule of the model's elements")


def _print(rows: Sequence[Row]) -> None:
    from equijax.checks.page import cells

    colors = {"pass": "green", "warn": "yellow", "fail": "red", "info": None}
    width = max(len(row.name) for row in rows)
    for row in rows:
        verdict, name, measured, allowed, unit, where = cells(row)
        bound = f"(allowed {allowed})" if row.limit is not None else "(shown)"
        line = f"{name:{width}s} {measured:>8s} {unit:9s} {bound}"
        typer.echo(f"{typer.style(f'{verdict:4s}', fg=colors[row.verdict])} {line}{f'  {where}' if where else ''}")


def _write_json(data: object, path: Path | None) -> None:
    import json

    from equijax.weights.atomic_file import write_atomically

    if path is not None:
        write_atomically(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
