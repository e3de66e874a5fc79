"""What `equijax evaluate`, `predict` and `check` do with a model of Hamiltonians."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from equijax.errors import EquijaxError, located

if TYPE_CHECKING:
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.structure import Structure
    from equijax.train.evaluate import Evaluation


def evaluate_hamiltonian_model(
    model: HamiltonianModel, data: Path, json_file: Path | None, output: Path | None, dtype: Any
) -> None:
    """Errors on a file of Hamiltonians, as a table, as JSON, and as a report."""
    from equijax.hamiltonians.readers import read_hamiltonians
    from equijax.train.hamiltonian_evaluation import evaluate_hamiltonians
    from equijax.weights.atomic_file import write_atomically

    result = evaluate_hamiltonians(model, read_hamiltonians(data), dtype)
    text = json.dumps(result.metrics, indent=1, allow_nan=False)
    if json_file is not None and str(json_file) != "-":
        write_atomically(json_file, (text + "\n").encode())
    if output is not None:
        _write_output(output, data, result)
    if str(json_file) == "-":
        typer.echo(text)
    else:
        _print(result)


def _write_output(output: Path, data: Path, result: Evaluation) -> None:
    from equijax.report import write_report
    from equijax.report.hamiltonian_predictions import save_hamiltonians
    from equijax.weights.atomic_file import write_atomically

    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", data.name.split(".")[0]) or "data"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EquijaxError(f"{output}: --output: cannot be created ({error.strerror})") from error
    matrices = [prediction["hamiltonian"] for prediction in result.predictions]
    save_hamiltonians(output / f"hamiltonians_{name}.npz", result.structures, matrices)
    metrics_file = output / "test_metrics.json"
    known = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}
    write_atomically(metrics_file, json.dumps({**known, name: result.metrics}, indent=1).encode())
    write_report(output)


def _print(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    metrics = result.metrics
    console.print(f"{metrics['n_structures']} structures")
    table = Table(box=None, pad_edge=False)
    for column in ("", "MAE", "unit"):
        table.add_column(column, justify="right" if column == "MAE" else "left")
    errors = metrics["hamiltonian"]
    names = {"mae": "H", "mae_diagonal": "H, same atom", "mae_off_diagonal": "H, two atoms"}
    for key, name in names.items():
        if key in errors:
            table.add_row(name, f"{errors[key]:.2f}", "µEh")
    orbitals = metrics.get("orbitals", {})
    names = {"energy_mae": "occupied energies", "homo_mae": "HOMO", "lumo_mae": "LUMO", "gap_mae": "gap"}
    for key, name in names.items():
        if key in orbitals:
            table.add_row(name, f"{orbitals[key]:.2f}", "µEh")
    if orbitals:
        table.add_row("density", f"{orbitals['density_error']:.2e}", "electrons")
        table.add_row("orbitals, similarity ψ", f"{100 * orbitals['psi']:.3f}", "%")
        table.add_row("occupied space, overlap", f"{100 * orbitals['occupied_overlap']:.5f}", "%")
    console.print(table)
    console.print("\nby shell block, µEh")
    table = Table("block", "same atom", "two atoms", box=None, pad_edge=False)
    same, two = errors["by_shell"]["same_atom"], errors["by_shell"]["two_atoms"]
    for block in dict.fromkeys([*same, *two]):
        table.add_row(block, *(f"{part[block]:.2f}" if block in part else "–" for part in (same, two)))
    console.print(table)


def molecules(path: Path) -> list[Structure]:
    """Structures of a file of Hamiltonians, with the H0 and S that it has, or of any file that ASE reads."""
    from equijax.cli.predict import read_images
    from equijax.hamiltonians.readers import holds_hamiltonians, read_hamiltonians
    from equijax.structure import Structure

    if holds_hamiltonians(path):
        return read_hamiltonians(path)
    images = [Structure.from_ase(image) for image in read_images(path)]
    return [_named(structure, path, frame) for frame, structure in enumerate(images)]


def _named(structure: Structure, path: Path, frame: int) -> Structure:
    import dataclasses

    return dataclasses.replace(structure, file=str(path), frame=frame)


def predict_with_hamiltonian_model(model: HamiltonianModel, structures: Path, output: Path, dtype: Any) -> None:
    """Write H, S, orbital energies, HOMO, LUMO, gap and, with PySCF, dipoles of all structures to a .npz file."""
    from equijax.weights.atomic_file import write_atomically

    if output.suffix != ".npz":
        raise located("is not a name for Hamiltonians", file=output, key="--output", expected="a name ending in .npz")
    frames = molecules(structures)
    properties = ["hamiltonian", "overlap", "orbital_energies", "homo", "lumo", "gap"]
    if has_pyscf():
        properties.append("dipole")
    results = model.predict(frames, tuple(properties), dtype=dtype)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays(model, frames, results))
    write_atomically(output, buffer.getvalue())
    without = "" if "dipole" in properties else "; without dipoles, which need PySCF"
    typer.echo(f"wrote {len(frames)} structures to {output}{without}")


def has_pyscf() -> bool:
    """Whether PySCF can be imported."""
    from importlib.util import find_spec

    return find_spec("pyscf") is not None


def arrays(model: HamiltonianModel, frames: Sequence[Structure], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The arrays of an output file, in the layout of the data sets: upper triangles one after another, in float64."""
    import dataclasses

    from equijax.hamiltonians.matrix_file import hamiltonian_arrays

    info = {"basis": model.layout.basis, "functional": model.functional}
    predicted = [
        dataclasses.replace(frame, labels={name: result[name] for name in ("hamiltonian", "overlap")}, info=info)
        for frame, result in zip(frames, results, strict=True)
    ]
    found: dict[str, Any] = {
        **hamiltonian_arrays(predicted, "float64"),
        "orbital_energies": np.concatenate([result["orbital_energies"] for result in results]),
        **{name: np.array([result[name] for result in results]) for name in ("homo", "lumo", "gap")},
    }
    if "dipole" in results[0]:
        found["dipole"] = np.stack([result["dipole"] for result in results])
    return found
