"""`equijax freeze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def freeze(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors) of a trained MACE.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model file; must not exist.")],
    tolerance: Annotated[
        float, typer.Option(help="Largest error of a radial weight and of its slope, over the largest of the layer.")
    ] = 1e-5,
) -> None:
    """Replace the radial networks of a MACE by polynomials, for faster predictions and dynamics; no more training."""
    from equijax.doctor import require_healthy_backend
    from equijax.errors import located
    from equijax.potential.frozen import frozen
    from equijax.weights import load_potential as load
    from equijax.weights import save_potential

    if output.exists():
        raise located("exists", file=output, expected="a new name")
    require_healthy_backend()
    potential, fits = frozen(load(model), tolerance)
    save_potential(potential, output)
    expansion = potential.model_config.radial_expansion
    typer.echo(f"{output}: {expansion.polynomials} polynomials, rank {expansion.rank}, in place of the radial networks")
    for layer, fit in enumerate(fits):
        typer.echo(f"layer {layer}: largest error {fit.value_error:.1e} of a weight, {fit.slope_error:.1e} of a slope")
