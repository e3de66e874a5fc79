"""`equijax check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equijax.errors import located


def check(
    target: Annotated[Path, typer.Argument(help="Experiment file (YAML) or model file (.safetensors).")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a value of an experiment file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Audit the data and the plan of an experiment, or the physics of a model."""
    if target.suffix == ".safetensors":
        _check_model(target, json_file)
    elif target.suffix in (".yaml", ".yml"):
        _check_experiment(target, set_ or [], json_file)
    else:
        raise located("is not known", file=target, expected="an experiment file (.yaml) or a model (.safetensors)")


def _check_experiment(path: Path, overrides: list[str], json_file: Path | None) -> None:
    from equijax.experiment import load_experiment
    from equijax.train.preview import preview

    result = preview(load_experiment(path, overrides))
    typer.echo(result.text())
    _write_json(result.to_dict(), json_file)


def _check_model(path: Path, json_file: Path | None) -> None:
    import dataclasses

    from equijax.cli.hamiltonians import check_hamiltonian_model
    from equijax.doctor import require_healthy_backend
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.model_check import check_potential
    from equijax.weights import load

    require_healthy_backend()
    potential = load(path)
    typer.echo(repr(potential))
    if isinstance(potential, HamiltonianModel):
        lines, entries, passed = check_hamiltonian_model(potential)
        typer.echo("\n".join(lines))
        _write_json({"checks": entries}, json_file)
        if not passed:
            raise typer.Exit(1)
        return
    checks = check_potential(potential)
    for entry in checks:
        verdict = "ok  " if entry.passed else "FAIL"
        allowed = "not required" if entry.tolerance == float("inf") else f"allowed {entry.tolerance:.1e}"
        typer.echo(f"{verdict} {entry.name:45s} {entry.deviation:.1e} {entry.unit} ({allowed})")
    rows = [dataclasses.asdict(entry) | {"passed": entry.passed} for entry in checks]
    _write_json({"checks": [{k: None if v == float("inf") else v for k, v in row.items()} for row in rows]}, json_file)
    if not all(entry.passed for entry in checks):
        raise typer.Exit(1)


def _write_json(data: object, path: Path | None) -> None:
    import json

    from equijax.weights.atomic_file import write_atomically

    if path is not None:
        write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
