"""`equijax export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.predict import read_images
from equijax.errors import located


def export(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    like: Annotated[Path | None, typer.Option(help="Structures that the exported model will meet.")] = None,
    buckets: Annotated[
        str | None, typer.Option(help="Largest atoms x neighbours per atom, such as 32x24,256x60; instead of --like.")
    ] = None,
    platforms: Annotated[str, typer.Option(help="cpu, cuda, rocm, tpu, with commas.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder.")] = False,
) -> None:
    """Write a folder that gives energies, forces and stress with jax and numpy alone."""
    check_dtype(dtype)
    if (like is None) == (buckets is None):
        raise located(
            "sizes are not known" if like is None else "both are given",
            key="--like, --buckets",
            expected="one of them: structures, or sizes such as --buckets 32x24,256x60",
        )
    images = [] if like is None else read_images(like)

    from equijax.deploy.export import bucket, buckets_like, export_potential
    from equijax.doctor import require_healthy_backend
    from equijax.structure import Structure
    from equijax.weights import load_potential

    require_healthy_backend()
    potential = load_potential(model)
    if buckets is None:
        shapes = buckets_like(potential, [Structure.from_ase(image) for image in images])
    else:
        shapes = [bucket(*pair) for pair in _sizes(buckets)]
    names = [name.strip() for name in platforms.split(",") if name.strip()]
    export_potential(potential, output, shapes, names, dtype, overwrite)  # type: ignore[arg-type]
    held = ", ".join(f"{shape.nodes - 1} atoms x {shape.neighbors} neighbours" for shape in shapes)
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    typer.echo(f"wrote {output}: {size:.1f} MB for {', '.join(names)}; buckets: {held}")


def _sizes(text: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d{1,7})x(\d{1,5})", part.strip()) for part in text.split(",")]
    if not all(found):
        raise located(f"is {text!r}", key="--buckets", expected="ATOMSxNEIGHBOURS, such as 32x24,256x60")
    return [(int(match[1]), int(match[2])) for match in found if match]
