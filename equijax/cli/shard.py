"""`equijax shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from equijax.cli.evaluate import KeysOption, UnitsOption, assignments
from equijax.errors import located


def shard(
    inputs: Annotated[list[Path], typer.Argument(help="Labelled structures: extxyz, ASE db, npz, HDF5.")],
    output: Annotated[Path, typer.Option(help="Directory for the shards.")],
    frames_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Frames in a shard.", show_default="as many as make 64 MiB")
    ] = None,
    key: KeysOption = None,
    unit: UnitsOption = None,
    stress_sign: Annotated[int, typer.Option(help="-1 when stress labels have VASP's sign.")] = 1,
    forces_sign: Annotated[int, typer.Option(help="-1 when the files hold energy gradients.")] = 1,
    max_force: Annotated[float | None, typer.Option(help="Leave out frames with a force above this, eV/Å.")] = None,
    on_bad_frame: Annotated[str, typer.Option(help="error or skip: frames whose labels are not usable.")] = "error",
    allow_truncated: Annotated[bool, typer.Option("--allow-truncated", help="Drop an incomplete last frame.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what is otherwise left out with a note.")] = False,
    atomic_energies: Annotated[
        str | None,
        typer.Option(
            help="isolated_atoms or least_squares: what energies are compared with.",
            show_default="isolated atoms if any",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove shards in the output directory first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only warnings and errors.")] = False,
) -> None:
    """Check labelled structures and write them as shards, from which training streams. Continues after a kill."""
    from equijax.config.yaml import validate
    from equijax.datasets.config import ReadOptions, expand
    from equijax.datasets.shard_writer import write_shards

    known: tuple[Literal["isolated_atoms"], Literal["least_squares"]] = ("isolated_atoms", "least_squares")
    if atomic_energies is not None and atomic_energies not in known:
        raise located(f"is '{atomic_energies}'", key="--atomic-energies", expected=" or ".join(known))
    if max_force is not None and not max_force > 0:
        raise located(f"is {max_force}", key="--max-force", expected="a positive number in eV/Å")
    options: dict[str, Any] = {
        "keys": {name: None if text == "null" else text for name, text in assignments(key, "--key").items()},
        "stress_sign": stress_sign,
        "forces_sign": forces_sign,
        "on_bad_frame": on_bad_frame,
        "allow_truncated": allow_truncated,
        "strict": strict,
    }
    if unit:
        options["units"] = assignments(unit, "--unit")
    shards = write_shards(
        expand(tuple(inputs), "INPUT"),
        output,
        validate(ReadOptions, options, "options"),
        frames_per_shard=frames_per_shard,
        max_force=max_force,
        atomic_energies=atomic_energies,
        overwrite=overwrite,
        report=(lambda text: None) if quiet else typer.echo,
    )
    if not quiet:
        labels = ", ".join(f"{name} {n}/{shards.frames}" for name, n in shards.manifest["labels"].items() if n)
        typer.echo(f"{output}: {shards.frames} frames in {len(shards.files)} shards; labels: {labels}")
