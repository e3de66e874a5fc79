"""`equijax boost`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equijax.errors import located


def boost(
    config: Annotated[Path, typer.Argument(help="What to train (YAML); experiments/boost holds one.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a value: --set training.epochs=10")] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/CONFIG")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Train a surrogate that speeds up dynamics of a model: `equijax md MODEL ... --boost SURROGATE`."""
    from equijax.boost.config import BoostExperiment
    from equijax.config.yaml import apply_overrides, load_yaml, validate
    from equijax.doctor import require_healthy_backend

    data, lines = apply_overrides(*load_yaml(config), set_ or ())
    experiment = validate(BoostExperiment, data, config, lines)
    for key, path in (("base", experiment.base), ("windows.structure", experiment.windows.structure)):
        if not path.is_file():
            raise located("there is no such file", file=path, key=key)
    require_healthy_backend()

    from equijax.boost.training import train_surrogate

    model = train_surrogate(
        experiment, output or Path("runs") / config.stem, resume, (lambda line: None) if quiet else typer.echo
    )
    if not quiet:
        typer.echo(f"surrogate: {model}")
