"""`equijax hessian`, `equijax phonons` and `equijax elastic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.structure_files import check_output, read_one, write_extxyz, write_npz
from equijax.errors import EquijaxError, did_you_mean

Model = Annotated[Path, typer.Argument(help="Model file (.safetensors).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files.")]
DTypeOption = Annotated[str, typer.Option(help="float32 or float64.")]
Chunk = Annotated[int, typer.Option(min=1, help="Columns of the Hessian at a time; memory grows with it.")]


def hessian(
    model: Model,
    structure: Annotated[Path, typer.Argument(help="One structure at rest, in any format that ASE reads.")],
    output: Annotated[Path | None, typer.Option(help="Hessian and modes, .npz.")] = None,
    modes: Annotated[Path | None, typer.Option(help="Normal modes as frames to look at, .xyz.")] = None,
    frequencies: Annotated[bool, typer.Option("--frequencies", help="List all of them.")] = False,
    lowest: Annotated[int | None, typer.Option(min=1, help="Only so many modes, without building the Hessian.")] = None,
    temperature: Annotated[float | None, typer.Option(help="K; free energy and entropy of the vibrations.")] = None,
    chunk: Chunk = 16,
    overwrite: Overwrite = False,
    dtype: DTypeOption = "float64",
) -> None:
    """Hessian and harmonic vibrations of a structure."""
    check_dtype(dtype)
    check_output(output, (".npz",), overwrite)
    check_output(modes, (".xyz", ".extxyz"), overwrite, "--modes")
    if lowest is not None and temperature is not None:
        raise EquijaxError("--temperature needs all modes; leave --lowest out")
    atoms = read_one(structure)
    potential = _load(model)

    from equijax.statics import lowest_modes, vibrational_modes
    from equijax.statics.vibrations import hessian_product

    evaluator = potential.evaluator(dtype)
    arrays: dict[str, Any] = {}
    if lowest is not None:
        found = lowest_modes(potential, atoms, lowest, evaluator=evaluator)
    else:
        arrays["hessian"] = hessian_product(potential, atoms, evaluator, chunk).matrix()
        found = vibrational_modes(potential, atoms, evaluator=evaluator, hessian=arrays["hessian"])
    _describe(found, frequencies or lowest is not None)
    if temperature is not None:
        thermo = found.thermochemistry()
        free, entropy = thermo.get_helmholtz_energy(temperature, verbose=False), thermo.get_entropy(temperature, False)
        typer.echo(f"at {temperature:g} K: free energy of the vibrations {free:.4f} eV, entropy {entropy:.6f} eV/K")
    if output:
        geometry = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
        arrays |= {"energies": found.energies, "wavenumbers": found.wavenumbers, "modes": found.modes}
        write_npz(output, masses=atoms.get_masses(), **geometry, **arrays)
        typer.echo(f"arrays: {output}")
    if modes:
        write_extxyz(modes, [frame for mode in range(len(found.energies)) for frame in found.mode_frames(mode)])
        typer.echo(f"modes: {modes}")


def _describe(found: Any, with_table: bool) -> None:
    typer.echo(
        f"{len(found.energies)} modes, {found.num_imaginary} imaginary; {found.free} translations and rotations "
        f"projected out, residual {found.residual * 1e3:.2e} meV; largest force {found.max_force:.2e} eV/Å"
    )
    if with_table:
        typer.echo("mode      meV       cm-1")
        for index, (energy, wavenumber) in enumerate(zip(found.energies, found.wavenumbers, strict=True)):
            mark = "i" if energy < 0 else " "
            typer.echo(f"{index:4d} {abs(energy) * 1e3:9.3f}{mark} {abs(wavenumber):9.2f}{mark}")
    typer.echo(f"zero-point energy of the modes: {found.zero_point_energy:.4f} eV")


def phonons(
    model: Model,
    crystal: Annotated[Path, typer.Argument(help="One primitive cell at rest, in any format that ASE reads.")],
    output: Annotated[Path, typer.Option(help="Bands, density of states and force constants, .npz; plot beside it.")],
    supercell: Annotated[tuple[int, int, int], typer.Option(help="Repeats of the cell, such as 2 2 2.")] = (2, 2, 2),
    path: Annotated[str, typer.Option(help="Special points such as GXWKG, or auto.")] = "auto",
    points: Annotated[int, typer.Option(min=2, help="Wave vectors on the path.")] = 200,
    grid: Annotated[tuple[int, int, int], typer.Option(help="Wave vectors of the density of states.")] = (16, 16, 16),
    chunk: Chunk = 16,
    overwrite: Overwrite = False,
    dtype: DTypeOption = "float64",
) -> None:
    """Phonon bands and density of states of a crystal, from the Hessian of a supercell."""
    check_dtype(dtype)
    check_output(output, (".npz",), overwrite)
    picture = output.with_suffix(".png")
    check_output(picture, (".png",), overwrite)
    atoms = read_one(crystal)
    potential = _load(model)

    from equijax.statics import force_constants
    from equijax.statics.phonon_plot import phonon_picture
    from equijax.weights.atomic_file import write_atomically

    evaluator = potential.evaluator(dtype)
    found = force_constants(potential, atoms, supercell, evaluator=evaluator, chunk=chunk)
    band_path, bands = found.bands(None if path == "auto" else path, points)
    axis, density = found.density_of_states(grid)
    typer.echo(
        f"acoustic sum rule broken by {found.sum_rule:.2e} eV/Å² before it was imposed, asymmetry "
        f"{found.asymmetry:.2e} eV/Å², largest force {found.max_force:.2e} eV/Å\n"
        f"constants at the boundary of the supercell: {found.at_boundary:.1e} of the largest"
    )
    if found.at_boundary > 0.02:
        typer.echo("warning: the supercell is small for this model; compare with a larger one", err=True)
    lowest, highest = bands.min() * 1e3, bands.max() * 1e3
    typer.echo(f"bands from {lowest:.3f} to {highest:.3f} meV" + (" (negative: imaginary)" if lowest < -1e-3 else ""))
    write_npz(
        output,
        constants=found.constants,
        owners=found.owners,
        supercell=found.supercell,
        q=band_path.kpts,
        special_points=band_path.path,
        bands=bands,
        energies=axis,
        density_of_states=density,
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        masses=atoms.get_masses(),
    )
    write_atomically(picture, phonon_picture(band_path, bands, axis, density))
    typer.echo(f"arrays: {output}; picture: {picture}")


def elastic(
    model: Model,
    crystal: Annotated[Path, typer.Argument(help="One crystal, in any format that ASE reads.")],
    relax: Annotated[str, typer.Option(help="Before: cell (and atoms), atoms or none.")] = "cell",
    output: Annotated[Path | None, typer.Option(help="Constants and moduli, .json.")] = None,
    chunk: Chunk = 16,
    overwrite: Overwrite = False,
    dtype: DTypeOption = "float64",
) -> None:
    """Elastic constants with relaxed ions, and the moduli of a polycrystal."""
    check_dtype(dtype)
    check_output(output, (".json",), overwrite)
    if relax not in ("cell", "atoms", "none"):
        raise EquijaxError(f"--relax: there is no '{relax}'; {did_you_mean(relax, ('cell', 'atoms', 'none'))}")
    atoms = read_one(crystal)
    potential = _load(model)

    from equijax.statics import elasticity
    from equijax.statics import relax as relax_structures

    evaluator = potential.evaluator(dtype)
    if relax != "none":
        tight = 1e-3 if dtype == "float32" else 1e-5
        mode = {"cell": "full", "atoms": "none"}[relax]
        rest = relax_structures(potential, atoms, evaluator=evaluator, file=str(crystal), cell=mode, fmax=tight)
        if not rest.converged:
            raise EquijaxError(f"{crystal}: {rest.message or rest.status}; the constants need a structure at rest")
        atoms = rest.atoms
        typer.echo(f"relaxed in {rest.steps} steps, volume {atoms.get_volume():.3f} Å³")
    found = elasticity(potential, atoms, evaluator=evaluator, chunk=chunk)
    for title, matrix in (("relaxed ions", found.relaxed), ("clamped ions", found.clamped)):
        typer.echo(f"C / GPa, {title} (xx yy zz yz xz xy)")
        for row in matrix:
            typer.echo("  " + " ".join(f"{value:9.3f}" for value in row))
    moduli = found.moduli()
    for name, value in moduli.items():
        unit = "" if name.endswith(("ratio", "anisotropy")) or name.startswith("poisson") else " GPa"
        typer.echo(f"{name.replace('_', ' '):>21} {value:9.3f}{unit}")
    unstable = f"; {found.unstable_modes} unstable modes of the ions" if found.unstable_modes else ""
    typer.echo(("stable" if found.is_stable else "not stable: some strain lowers the energy") + unstable)
    if output:
        _write_json(output, found, moduli, atoms)


def _write_json(output: Path, found: Any, moduli: dict[str, float], atoms: Any) -> None:
    import json

    from equijax.weights.atomic_file import write_atomically

    record = {
        "relaxed_gpa": found.relaxed.tolist(),
        "clamped_gpa": found.clamped.tolist(),
        "stress_gpa": found.stress.tolist(),
        "moduli": moduli,
        "is_stable": found.is_stable,
        "unstable_modes": found.unstable_modes,
        "max_force": found.max_force,
        "cell": atoms.cell.array.tolist(),
        "positions": atoms.positions.tolist(),
        "numbers": atoms.numbers.tolist(),
    }
    write_atomically(output, (json.dumps(record, indent=1) + "\n").encode())
    typer.echo(f"constants: {output}")


def _load(model: Path) -> Any:
    from equijax.doctor import require_healthy_backend
    from equijax.weights import load_potential as load

    require_healthy_backend()
    return load(model)
