"""`equijax ipi`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.structure_files import read_one


def ipi(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    structure: Annotated[Path, typer.Argument(help="The structure that the server starts from, atoms in its order.")],
    address: Annotated[str, typer.Option(help="Host of the server.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 31415,
    unix: Annotated[str | None, typer.Option(help="Name of a unix socket, /tmp/ipi_NAME, instead of a port.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    dispersion: Annotated[
        str | None,
        typer.Option(help="Add D3, such as d3bj:pbe (extra dispersion).", show_default="that of the model"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Compute forces for i-PI, or another server of its protocol, until it ends."""
    check_dtype(dtype)
    atoms = read_one(structure)

    from equijax.deploy.ipi import serve_forces
    from equijax.doctor import require_healthy_backend
    from equijax.weights import load_potential

    require_healthy_backend()
    potential = load_potential(model)
    steps = serve_forces(
        potential if dispersion is None else potential.with_dispersion(dispersion),
        atoms,
        address=address,
        port=port,
        unix=unix,
        dtype=dtype,  # type: ignore[arg-type]
    )
    if not quiet:
        typer.echo(f"the server ended the run; {steps} structures computed")
