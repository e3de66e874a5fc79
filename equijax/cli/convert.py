"""`equijax convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert weights and data of other programs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _formats() -> None:
    # Without a callback typer would fold a single subcommand into its parent.
    pass


@app.command("mace-torch")
def mace_torch(
    source: Annotated[Path, typer.Argument(help="NAME.model of mace-torch (needs the extra interop), or an export.")],
    output: Annotated[Path, typer.Argument(help="OUT.safetensors")],
    head: Annotated[str | None, typer.Option(help="Which head of a model with several.")] = None,
) -> None:
    """A mace-torch model, verified against torch before it is written.

    Reading a .model file executes code in that file: convert only files whose origin you trust.
    """
    from equijax.doctor import require_healthy_backend
    from equijax.weights.mace_torch_import import convert_mace_torch

    require_healthy_backend()
    typer.echo(convert_mace_torch(source, output, head))


@app.command("fairchem")
def fairchem(
    source: Annotated[Path, typer.Argument(help="CHECKPOINT.pt of fairchem 1.x (needs torch), or an export.")],
    output: Annotated[Path, typer.Argument(help="OUT.safetensors")],
    elements: Annotated[
        str | None, typer.Option(help="Elements to keep, such as H,C,O; by default all that the model has a row for.")
    ] = None,
) -> None:
    """An EquiformerV2 or eSCN of fairchem, read as tensors and plain values: nothing in the file is executed."""
    from equijax.weights.fairchem_import import convert_fairchem

    typer.echo(convert_fairchem(source, output, elements))


@app.command("torchmd-net")
def torchmd_net(
    source: Annotated[Path, typer.Argument(help="CHECKPOINT.ckpt of torchmd-net (needs torch), or an export.")],
    output: Annotated[Path, typer.Argument(help="OUT.safetensors")],
    energy_unit: Annotated[str, typer.Option(help="Unit of its energies, which the checkpoint does not say: eV, ...")],
    elements: Annotated[
        str | None, typer.Option(help="Elements to keep, such as H,C,O; by default those with an energy in Atomref.")
    ] = None,
    num_atoms: Annotated[
        int | None, typer.Option(min=1, help="Atoms per molecule, to spread the mean energy of a molecule over.")
    ] = None,
    total_charge: Annotated[float, typer.Option(help="Charge of the structures, in e.")] = 0.0,
) -> None:
    """A TensorNet of torchmd-net, verified against it where it is installed; nothing in the file is executed."""
    from equijax.weights.torchmd_net_import import convert_torchmd_net

    typer.echo(convert_torchmd_net(source, output, energy_unit, elements, num_atoms, total_charge))


@app.command("hamiltonians")
def hamiltonians(
    source: Annotated[Path, typer.Argument(help="QH9 (.db, .lmdb), MD17 Hamiltonians (.db), or an .npz.")],
    output: Annotated[Path, typer.Argument(help="OUT.npz")],
    functional: Annotated[
        str | None, typer.Option(help="Of a file that does not say it, such as b3lyp5.", show_default="by its name")
    ] = None,
    complete: Annotated[bool, typer.Option(help="Compute missing overlaps and H0 with PySCF.")] = True,
    start: Annotated[int, typer.Option(min=0, help="Number of the first molecule.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many molecules.")] = None,
) -> None:
    """Hamiltonians in the layout that training reads, with overlaps and initial Hamiltonians.

    What is computed is kept in SOURCE.pyscf.db, where an interrupted conversion goes on.
    """
    from equijax.hamiltonians.matrix_file import write_hamiltonians
    from equijax.hamiltonians.pyscf_bridge import complete_with_pyscf
    from equijax.hamiltonians.readers import read_hamiltonians

    structures = read_hamiltonians(source, functional=functional, start=start, limit=limit)
    if complete:
        structures = complete_with_pyscf(structures, show=_progress)
    write_hamiltonians(output, structures)
    typer.echo(f"wrote {len(structures)} molecules to {output}: {', '.join(structures[0].labels)}")


def _progress(done: int, total: int) -> None:
    if done % 1000 == 0:
        typer.echo(f"{done} of {total} molecules")
