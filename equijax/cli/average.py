"""`equijax average`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.predict import read_images

if TYPE_CHECKING:
    from equijax.md.tensor_average import TensorAverage


def average(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors) with tensor targets.")],
    trajectory: Annotated[Path, typer.Argument(help="Frames of one molecule, in any format that ASE reads.")],
    target: Annotated[str, typer.Option(help="Name of the target: a tensor per system.")],
    blocks: Annotated[int, typer.Option(min=2, help="Parts of the trajectory for the standard error.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file; - is stdout.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
) -> None:
    """Average a tensor over a trajectory in the frame of the molecule, then diagonalise it."""
    from equijax.doctor import require_healthy_backend
    from equijax.md.tensor_average import tensor_average
    from equijax.structure import Structure
    from equijax.weights import load_potential as load
    from equijax.weights.atomic_file import write_atomically

    check_dtype(dtype)
    require_healthy_backend()
    potential = load(model)
    frames = [
        dataclasses.replace(Structure.from_ase(image), file=str(trajectory), frame=index)
        for index, image in enumerate(read_images(trajectory))
    ]
    result = tensor_average(potential, frames, target, blocks, dtype)  # type: ignore[arg-type]
    text = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    if str(json_file) == "-":
        typer.echo(text)
        return
    if json_file is not None:
        write_atomically(json_file, (text + "\n").encode())
    typer.echo("\n".join(_lines(result)))


def _lines(result: TensorAverage) -> list[str]:
    unit = f" {result.unit}" if result.unit else ""
    lines = [
        f"{result.target}: {result.frames} frames laid onto the first; rmsd {result.rmsd[0]:.3f} Å on average, "
        f"{result.rmsd[1]:.3f} Å at most",
        f"mean{unit}, standard error from {result.blocks} blocks:",
        *(f"  {row}" for row in _rows(result.mean, result.error)),
    ]
    if result.principal_values is not None and result.axes is not None:
        lines.append(f"principal values{unit} and axes:")
        for value, axis in zip(result.principal_values, result.axes.T, strict=True):
            lines.append(f"  {value:12.5g}   ({', '.join(f'{x:+.4f}' for x in axis)})")
    if result.zero_field is not None:
        numbers = result.zero_field
        lines.append(f"D {numbers['D']:.5g}{unit}, E {numbers['E']:.5g}{unit}, E/D {numbers['E/D']:.4f}")
    return lines


def _rows(mean: Any, error: Any) -> list[str]:
    """Elements with their errors, three in a row."""
    pairs = zip(mean.reshape(-1, 3), error.reshape(-1, 3), strict=True)
    return ["  ".join(f"{m:12.5g} ± {e:.1g}" for m, e in zip(*row, strict=True)) for row in pairs]
