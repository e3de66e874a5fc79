"""`equijax evaluate`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equijax.errors import EquijaxError, did_you_mean, located

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig
    from equijax.potential.potential import Potential
    from equijax.structure import Structure

KeysOption = Annotated[
    list[str] | None, typer.Option("--key", help="Name of a label in the file: --key energy=REF_energy")
]
UnitsOption = Annotated[
    list[str] | None, typer.Option("--unit", help="Unit in the file: --unit energy=kcal/mol --unit length=bohr")
]

BackendOption = Annotated[
    str | None,
    typer.Option(help="xla or cuequivariance: what evaluates Clebsch-Gordan products.", show_default="xla"),
]
MatmulOption = Annotated[
    str | None,
    typer.Option(help="highest, tf32 or bf16: products with trained matrices, in float32.", show_default="highest"),
]

UncertaintyOption = Annotated[
    bool, typer.Option(help="Uncertainties too, if the model has them; those of the last layer's forces take longer.")
]


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    data: Annotated[Path, typer.Argument(help="Labelled structures: extxyz, ASE db, npz, HDF5; or Hamiltonians.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the errors to this file; - is stdout.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory for predictions, report.html and the worst frames.")
    ] = None,
    key: KeysOption = None,
    unit: UnitsOption = None,
    stress_sign: Annotated[int, typer.Option(help="-1 when stress labels have VASP's sign.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    uncertainty: UncertaintyOption = True,
    backend: BackendOption = None,
    matmul_precision: MatmulOption = None,
) -> None:
    """Errors of a model on labelled structures, and how well its uncertainties fit them."""
    from equijax.cli.hamiltonians import evaluate_hamiltonian_model
    from equijax.doctor import require_healthy_backend
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.train.evaluate import evaluate as run
    from equijax.weights import load

    check_dtype(dtype)
    require_healthy_backend()
    potential = load(model)
    if isinstance(potential, HamiltonianModel):
        for option, given in (("--key", key), ("--unit", unit), ("--stress-sign", stress_sign != 1)):
            if given:
                raise located("files of Hamiltonians have no use for it", key=option, fix="leave it out")
        if backend is not None or matmul_precision is not None:
            option = "--backend" if backend is not None else "--matmul-precision"
            raise located("models of Hamiltonians have no use for it", key=option, fix="leave it out")
        evaluate_hamiltonian_model(potential, data, json_file, output, dtype)
        return
    potential = executed(potential, backend, matmul_precision)
    structures = read_labelled(data, key, unit, stress_sign, potential.targets)
    result = run(potential, structures, dtype, uncertainty)  # type: ignore[arg-type]
    text = json.dumps(result.metrics, indent=1, allow_nan=False)
    if json_file is not None and str(json_file) != "-":
        from equijax.weights.atomic_file import write_atomically

        write_atomically(json_file, (text + "\n").encode())
    if output is not None:
        _write_output(output, data, result)
    if str(json_file) == "-":
        typer.echo(text)
    else:
        _print_tables(result)


def check_dtype(dtype: str | None) -> None:
    """Refuse a precision that does not exist."""
    if dtype not in (None, "float32", "float64"):
        raise located(f"is '{dtype}'", key="--dtype", expected="float32 or float64")


def executed(potential: Potential, backend: str | None, matmul_precision: str | None) -> Potential:
    """The potential as the options want it evaluated."""
    if backend is None and matmul_precision is None:
        return potential
    return potential.with_execution(backend, matmul_precision)  # type: ignore[arg-type]


def read_labelled(
    data: Path,
    key: list[str] | None,
    unit: list[str] | None,
    stress_sign: int = 1,
    targets: Mapping[str, TargetConfig] | None = None,
) -> list[Structure]:
    """Structures of `data` with the labels that the options name, those of `targets` among them."""
    from equijax.config.yaml import validate
    from equijax.datasets.config import CANONICAL_KEYS, ReadOptions
    from equijax.datasets.readers import read_structures
    from equijax.models.target_labels import target_readers

    keys = assignments(key, "--key")
    for name in keys:
        if name not in CANONICAL_KEYS and name not in (targets or {}):
            known = (*CANONICAL_KEYS, *(targets or {}))
            raise located(f"'{name}' is not a label of this model", key="--key", fix=did_you_mean(name, known))
    options: dict[str, Any] = {"keys": keys, "stress_sign": stress_sign}
    if unit:
        options["units"] = assignments(unit, "--unit")
    readers = target_readers(targets or {})
    return read_structures(data, validate(ReadOptions, options, "options"), labels="required", targets=readers)


def assignments(pairs: list[str] | None, option: str) -> dict[str, str]:
    """`["a=b", ...]` as a mapping."""
    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise located(f"cannot be read: '{pair}'", key=option, expected="NAME=VALUE")
        found[name] = value
    return found


def _write_output(output: Path, data: Path, result: Any) -> None:
    from equijax.report import write_report
    from equijax.report.predictions import save_predictions
    from equijax.weights.atomic_file import write_atomically

    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", data.name.split(".")[0]) or "data"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EquijaxError(f"{output}: --output: cannot be created ({error.strerror})") from error
    save_predictions(output / f"predictions_{name}.npz", result.structures, result.predictions, result.targets)
    metrics_file = output / "test_metrics.json"
    known = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}
    write_atomically(metrics_file, json.dumps({**known, name: result.metrics}, indent=1).encode())
    write_report(output)


def _print_tables(result: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("", "RMSE", "MAE", "unit"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    metrics = result.metrics
    if "energy" in metrics:
        energy = metrics["energy"]
        table.add_row("energy per atom", *_milli(energy["rmse_per_atom"], energy["mae_per_atom"]), "meV/atom")
        table.add_row("energy", *_milli(energy["rmse"], energy["mae"]), "meV")
    for name, unit in (("forces", "meV/Å"), ("stress", "meV/Å³")):
        if name in metrics:
            table.add_row(name, *_milli(metrics[name]["rmse"], metrics[name]["mae"]), unit)
    console.print(f"{metrics['n_structures']} structures")
    if table.row_count:
        console.print(table)
    _print_uncertainties(console, metrics)
    _print_targets(console, result)
    if len(result.by_config_type) > 1:
        console.print("\nby config_type")
        table = Table("config_type", "n", "E RMSE meV/atom", "F RMSE meV/Å", box=None, pad_edge=False)
        for name, part in result.by_config_type.items():
            energy, forces = part.get("energy", {}), part.get("forces", {})
            cells = _milli(energy.get("rmse_per_atom"), forces.get("rmse"))
            table.add_row(name, str(part["n_structures"]), *cells)
        console.print(table)


def _print_uncertainties(console: Any, metrics: dict[str, Any]) -> None:
    """What `uncertainty_metrics` says, a row per label."""
    from rich.table import Table

    found = {name: metrics[name]["uncertainty"] for name in ("energy", "forces", "stress") if name in metrics
             and "coverage_1sigma" in metrics[name].get("uncertainty", {})}  # fmt: skip
    if not found:
        return
    columns = ("uncertainty", "RMS", "unit", "within 1σ", "within 2σ", "rank corr.", "NLL", "miscal. area")
    table = Table(*columns, box=None, pad_edge=False)
    units = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
    for name, entry in found.items():
        rank = f"{entry['spearman']:.2f}" if "spearman" in entry else "–"
        shares = [f"{100 * entry[key]:.1f} %" for key in ("coverage_1sigma", "coverage_2sigma")]
        table.add_row(name, *_milli(entry["rms"]), units[name], *shares, rank, f"{entry['nll']:.2f}",
                      f"{entry['miscalibration_area']:.3f}")  # fmt: skip
    console.print()
    console.print(table)
    if not all(entry["is_calibrated"] for entry in found.values()):
        console.print("not calibrated: `equijax calibrate` scales the uncertainties to errors on validation frames")


def _print_targets(console: Any, result: Any) -> None:
    """A table of the tensor targets: all elements, then by irrep and by component."""
    from rich.table import Table

    for name, config in result.targets.items():
        errors = result.metrics.get(name)
        if errors is None:
            continue
        table = Table(name, "RMSE", "MAE", "unit", box=None, pad_edge=False)
        table.add_row("all", f"{errors['rmse']:.5g}", f"{errors['mae']:.5g}", config.unit)
        for part, entry in {**errors["by_irrep"], **errors.get("by_component", {})}.items():
            table.add_row(part, f"{entry['rmse']:.5g}", f"{entry['mae']:.5g}", config.unit)
        console.print()
        console.print(table)
        if "relative" in errors:
            console.print(f"norm of the errors over norm of the labels: {100 * errors['relative']:.3g} %")
        if "not_positive_definite" in errors:
            shares = errors["not_positive_definite"]
            console.print(
                f"not positive definite: {100 * shares['predictions']:.3g} % of predictions, "
                f"{100 * shares['labels']:.3g} % of labels"
            )
        if "directional" in errors:
            console.print(f"along a direction: MAE {errors['directional']['mae']:.5g} {config.unit}".rstrip())


def _milli(*values: float | None) -> list[str]:
    return ["–" if value is None else f"{1000 * value:.3f}" for value in values]
