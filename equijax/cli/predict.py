"""`equijax predict`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equijax.cli.evaluate import BackendOption, MatmulOption, UncertaintyOption, check_dtype, executed
from equijax.errors import EquijaxWarning, located

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig


def predict(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    structures: Annotated[Path, typer.Argument(help="Structures in any format that ASE reads.")],
    output: Annotated[Path, typer.Option(help="File to write: extended XYZ, or .npz for Hamiltonians.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    uncertainty: UncertaintyOption = True,
    dispersion: Annotated[
        str | None,
        typer.Option(help="Add D3, such as d3bj:pbe (extra dispersion).", show_default="that of the model"),
    ] = None,
    parts: Annotated[
        int, typer.Option(min=1, help="Evaluate every structure in so many parts, where it does not fit in memory.")
    ] = 1,
    devices: Annotated[
        int, typer.Option(min=1, help="Evaluate the parts, as many of them, at the same time on so many devices.")
    ] = 1,
    born_charges: Annotated[
        bool, typer.Option("--born-charges", help="Also derivatives of the dipole by the positions, nine per atom.")
    ] = False,
    backend: BackendOption = None,
    matmul_precision: MatmulOption = None,
) -> None:
    """Energies, forces, (for crystals) stress and tensor targets of structures, written as extended XYZ.

    Of models with uncertainties also these: energy_uncertainty, forces_uncertainty, stress_uncertainty (Voigt order).
    """
    import io
    import warnings

    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    from equijax.cli.hamiltonians import predict_with_hamiltonian_model
    from equijax.doctor import require_healthy_backend
    from equijax.weights import load_potential
    from equijax.weights.atomic_file import write_atomically
    from equijax.weights.hamiltonian_file import load_hamiltonian_model
    from equijax.weights.model_file import model_kind

    check_dtype(dtype)
    if output.suffix not in (".xyz", ".extxyz", ".npz"):
        raise located(
            "is neither extended XYZ nor a file of Hamiltonians",
            file=output,
            key="--output",
            expected="a name ending in .xyz, or in .npz for Hamiltonians",
        )
    if output.exists() and not overwrite:
        raise located("exists already", file=output, key="--output", fix="choose another name or add --overwrite")
    require_healthy_backend()
    if model_kind(model) == "hamiltonian":
        if backend is not None or matmul_precision is not None:
            option = "--backend" if backend is not None else "--matmul-precision"
            raise located("models of Hamiltonians have no use for it", key=option, fix="leave it out")
        predict_with_hamiltonian_model(load_hamiltonian_model(model), structures, output, dtype)
        return
    if output.suffix == ".npz":
        raise located("is not an extended XYZ file", file=output, key="--output", expected="a name ending in .xyz")
    potential = executed(load_potential(model), backend, matmul_precision)
    if parts > 1 and uncertainty and potential.uncertainties:
        warnings.warn("uncertainties are left out: there are none in parts", EquijaxWarning, stacklevel=2)
        uncertainty = False
    if dispersion is not None:
        potential = potential.with_dispersion(dispersion)
    images = read_images(structures)
    frames = [_without_labels(image, potential.targets) for image in images]
    of_energy = ("energy", "forces") if potential.has_energy else ()
    has_stress = [bool(of_energy) and potential.is_conservative and _has_stress(atoms) for atoms in frames]
    for wanted_stress in (False, True):
        rows = [i for i, has in enumerate(has_stress) if has == wanted_stress]
        labels = (*of_energy, *(("stress",) if wanted_stress else ()))
        found = [n for n in potential.uncertainties if uncertainty and n.removesuffix("_uncertainty") in labels]
        born = ("born_charges",) if born_charges else ()
        properties = (*labels, *found, *born, *potential.targets)
        chosen = [frames[i] for i in rows]
        if not chosen:
            continue
        results = potential.predict(chosen, properties, dtype=dtype, parts=parts, devices=devices)  # type: ignore[arg-type]
        for i, result in zip(rows, results):
            for name, config in potential.targets.items():
                place = frames[i].arrays if config.per == "atom" else frames[i].info
                place[name] = written(config, result[name])
            if born_charges:
                frames[i].arrays["born_charges"] = result["born_charges"].reshape(-1, 9)
            if not of_energy:
                continue
            values = {"energy": float(result["energy"]), "forces": result["forces"]}
            if wanted_stress:
                values["stress"] = full_3x3_to_voigt_6_stress(result["stress"])
            for name in found:
                if name == "forces_uncertainty":
                    frames[i].arrays[name] = result[name]
                else:
                    value = result[name]
                    frames[i].info[name] = float(value) if value.ndim == 0 else full_3x3_to_voigt_6_stress(value)
            frames[i].calc = SinglePointCalculator(frames[i], **values)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    write_atomically(output, text.getvalue().encode())
    typer.echo(f"wrote {len(frames)} structures to {output}")


def read_images(path: Path) -> list[Any]:
    """All structures of a file as ASE Atoms; EquijaxError, with the file, when ASE cannot read it."""
    import ase.io

    if not path.is_file():
        raise located("no such file", file=path)
    if path.suffix in (".traj", ".trj", ".bundle", ".pkl", ".pickle", ".pt", ".pth"):
        raise located(f"{path.suffix} files are not read", file=path, fix="convert it: `ase convert in.traj out.xyz`")
    try:
        images = ase.io.read(path, index=":")
    except Exception as error:  # ASE raises whatever its parsers meet
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise located(f"cannot be read as structures: {reason}", file=path) from error
    if not images:
        raise located("holds no structures", file=path)
    return list(images)


def written(config: TargetConfig, value: Any) -> Any:
    """A target as extended XYZ holds it, to be read as its label: a number, a vector, a matrix (for stiffness tensors
    Voigt's 6 x 6), or a row per atom."""
    import numpy as np

    from equijax.irreps.voigt import to_voigt_matrix
    from equijax.models.target_labels import has_minor_symmetry

    array = np.asarray(value)
    if config.per == "atom":
        return array.reshape(len(array), -1)
    tensor = config.cartesian
    if config.per == "system" and tensor is not None and tensor.rank == 4 and has_minor_symmetry(tensor):
        return to_voigt_matrix(array)
    return float(array) if array.ndim == 0 else array


def _without_labels(atoms: Any, targets: Collection[str]) -> Any:
    """The geometry alone: labels of the input must not be mistaken for predictions."""
    from equijax.potential.potential import UNCERTAINTIES

    copy = atoms.copy()
    copy.calc = None
    for name in ("forces", "force", *UNCERTAINTIES, *targets):
        copy.arrays.pop(name, None)
    for name in ("energy", "free_energy", "stress", "virial", *UNCERTAINTIES, *targets):
        copy.info.pop(name, None)
    return copy


def _has_stress(atoms: Any) -> bool:
    return bool(atoms.pbc.all()) and atoms.cell.volume > 0
