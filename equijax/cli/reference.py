"""`equijax report`, `doctor`, `template`, `schema`: commands that need no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from equijax.errors import EquijaxError, did_you_mean


def report(run_dir: Annotated[Path, typer.Argument(help="Output directory of `equijax train`.")]) -> None:
    """Write report.html for a run: finished, stopped, or still going on."""
    from equijax.report import write_report

    typer.echo(f"wrote {write_report(run_dir)}")


def doctor() -> None:
    """Check that this installation computes correct numbers, and print versions and hardware."""
    from equijax.doctor import describe_installation, run_canary

    for name, value in describe_installation().items():
        typer.echo(f"{name:18s} {value}")
    results = run_canary()
    typer.echo()
    for result in results:
        verdict = "ok" if not result.wrong else f"WRONG: {result.wrong} of {result.rows} rows"
        typer.echo(f"{result.name:45s} {verdict}")
    if any(result.wrong for result in results):
        typer.echo("\nThis installation computes wrong numbers; equijax will not train or evaluate with it.", err=True)
        raise typer.Exit(1)
    typer.echo("\nAll checks passed.")


def template(
    model: Annotated[str, typer.Argument(help="Architecture, such as mace.")] = "mace",
    output: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
) -> None:
    """Print a commented experiment file with every option of a model and its default."""
    text = template_text(model)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise EquijaxError(f"{output}: exists already; choose another name")
    output.write_text(text, encoding="utf-8")


def template_text(model: str) -> str:
    """A commented experiment for `model` on a data set of the reader's own, as YAML."""
    from equijax.config.template import commented_yaml
    from equijax.config.yaml import validate
    from equijax.experiment import ExperimentConfig
    from equijax.models import HAMILTONIAN_MODELS, MODELS

    known = {**MODELS, **HAMILTONIAN_MODELS}
    if model not in known:
        raise EquijaxError(f"there is no model '{model}'; {did_you_mean(model, known)}")
    kind = "npz" if model in HAMILTONIAN_MODELS else "xyz"
    example = {
        "dataset": {"train": f"train.{kind}", "valid": {"fraction": 0.1}, "test": {"test": f"test.{kind}"}},
        "model": {"name": model},
    }
    header = (
        "# Experiment file of equijax: `equijax check FILE` explains it, `equijax train FILE` runs it.\n"
        "# Every value below is the default, except the paths of the data set.\n"
    )
    return header + commented_yaml(validate(ExperimentConfig, example))


def schema() -> None:
    """Print the JSON schema of experiment files, for completion and checks in an editor."""
    from equijax.experiment import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
