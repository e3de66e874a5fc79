"""`equijax relax`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.predict import read_images
from equijax.cli.structure_files import check_output, write_extxyz

EXIT_UNFINISHED = 3
"""The file is written, but not every structure in it is at rest."""


def relax(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    structures: Annotated[Path, typer.Argument(help="Structures in any format that ASE reads.")],
    output: Annotated[Path, typer.Option(help="File to write: extended XYZ.")],
    cell: Annotated[str, typer.Option(help="none, full, isotropic or shape (constant volume).")] = "none",
    fmax: Annotated[float, typer.Option(help="eV/Å; largest force at the end.")] = 0.01,
    smax: Annotated[float, typer.Option(help="GPa; largest stress at the end, of a cell that relaxes.")] = 0.01,
    pressure: Annotated[float, typer.Option(help="GPa; of a cell whose volume relaxes.")] = 0.0,
    method: Annotated[str, typer.Option(help="lbfgs or fire.")] = "lbfgs",
    max_steps: Annotated[int, typer.Option(help="Steps per structure.")] = 500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Relax structures, all of them together. Exit code 3 when some did not converge; the file is written anyway."""
    check_dtype(dtype)
    check_output(output, (".xyz", ".extxyz"), overwrite)
    images = read_images(structures)

    from equijax.doctor import require_healthy_backend
    from equijax.statics import relax as relax_structures
    from equijax.weights import load_potential as load

    require_healthy_backend()
    potential = load(model)
    evaluator = potential.evaluator(dtype)

    def report(index: int, result: Any) -> None:
        text = f"{index}: {result.atoms.get_chemical_formula()} {result.status} after {result.steps} steps"
        detail = result.message or f"force {result.max_force:.2e} eV/Å"
        if not quiet or not result.converged:
            typer.echo(f"{text}, {detail}", err=not result.converged)

    results = relax_structures(
        potential,
        images,
        evaluator=evaluator,
        on_done=report,
        file=str(structures),
        cell=cell,
        fmax=fmax,
        smax=smax,
        pressure_gpa=pressure,
        method=method,
        max_steps=max_steps,
    )
    write_extxyz(output, [_labelled(result) for result in results])
    converged = sum(result.converged for result in results)
    if not quiet:
        typer.echo(
            f"{converged} of {len(results)} converged, {evaluator.compile_count} compilations; structures: {output}"
        )
    if converged < len(results):
        typer.echo(f"{len(results) - converged} structures are not at rest", err=True)
        raise typer.Exit(EXIT_UNFINISHED)


def _labelled(result: Any) -> Any:
    """The structure with how it ended in its comment line, and without labels that came with the input."""
    atoms = result.atoms
    for name in ("forces", "force", "momenta"):
        atoms.arrays.pop(name, None)
    for name in ("energy", "free_energy", "stress", "virial"):
        atoms.info.pop(name, None)
    atoms.info |= {"relaxation": result.status, "steps": result.steps, "max_force": result.max_force}
    return atoms
