"""The part of a report about predicted Hamiltonians: errors, errors by shell block, and a picture of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.report.hamiltonian_predictions import HamiltonianPredictions, load_hamiltonians
from equijax.report.page import Page, shown
from equijax.report.style import data_uri, new_figure, plot_style, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    ("structures", ("n_structures",), 1.0),
    ("H MAE µEh", ("hamiltonian", "mae"), 1.0),
    ("same atom µEh", ("hamiltonian", "mae_diagonal"), 1.0),
    ("two atoms µEh", ("hamiltonian", "mae_off_diagonal"), 1.0),
    ("ε occupied µEh", ("orbitals", "energy_mae"), 1.0),
    ("ψ %", ("orbitals", "psi"), 100.0),
    ("occupied space %", ("orbitals", "occupied_overlap"), 100.0),
    ("density error e", ("orbitals", "density_error"), 1.0),
    ("gap µEh", ("orbitals", "gap_mae"), 1.0),
)
_LINEAR = 1e-4  # Hartree; below it the colour scale of the pictures is linear


def hamiltonian_sections(page: Page, directory: Path, test_metrics: Mapping[str, Any]) -> None:
    """Add what a run directory holds about Hamiltonians; nothing for a run of a potential."""
    metrics = {name: entry for name, entry in test_metrics.items() if isinstance(entry, dict) and _has(entry)}
    if metrics:
        page.section("Accuracy of the Hamiltonian")
        rows = [
            (name, *(_value(entry, path, factor) for _, path, factor in _COLUMNS)) for name, entry in metrics.items()
        ]
        page.table(("set", *(title for title, _, _ in _COLUMNS)), rows)
        page.paragraph(
            "Means over molecules. ψ compares orbitals one by one and is low when two of them change places; the "
            "occupied space, ‖C^T S C'‖²/n, and the density are what the energy depends on."
        )
        page.subsection("By shell block, mean absolute error in µEh")
        page.table(*shell_table(metrics))
    for path in sorted(directory.glob("hamiltonians_*.npz")):
        name = path.stem.removeprefix("hamiltonians_")
        try:
            predictions = load_hamiltonians(path)
        except EquijaxError as error:
            page.warning(str(error))
            continue
        index = median_molecule(predictions)
        page.subsection(f"{name}: a molecule of median error")
        figure = matrix_figure(predictions, index)
        page.picture(
            data_uri(to_png(figure)), f"True and predicted Hamiltonian of the set {name}, and their difference"
        )


def _has(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("hamiltonian"), dict) and "by_shell" in entry["hamiltonian"]


def _value(entry: Mapping[str, Any], path: tuple[str, ...], factor: float) -> Any:
    value: Any = entry
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, int) else factor * float(value)


def shell_table(metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: one row per pair of shells, of one atom and of two, one column per set."""
    blocks = [
        (part, block)
        for part in ("same_atom", "two_atoms")
        for block in dict.fromkeys(b for entry in metrics.values() for b in entry["hamiltonian"]["by_shell"][part])
    ]
    rows = [
        (
            f"{block}, {part.replace('_', ' ')}",
            *(entry["hamiltonian"]["by_shell"][part].get(block) for entry in metrics.values()),
        )
        for part, block in blocks
    ]
    return ("block", *metrics), rows


def median_molecule(predictions: HamiltonianPredictions) -> int:
    """The molecule whose mean absolute error is the median of the set."""
    errors = [
        float(np.abs(predictions.matrix("predicted", i) - predictions.matrix("true", i)).mean())
        for i in range(len(predictions))
    ]
    return int(np.argsort(errors, kind="stable")[len(errors) // 2])


def matrix_figure(predictions: HamiltonianPredictions, index: int) -> Figure:
    """The true and the predicted matrix of a molecule and their difference, in Hartree, with lines between atoms."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    true, predicted = predictions.matrix("true", index), predictions.matrix("predicted", index)
    error = predicted - true
    formula = Formula.from_list([chemical_symbols[int(z)] for z in predictions.numbers(index)]).format("hill")
    mae = shown(1e6 * float(np.abs(error).mean()))
    with plot_style():
        figure = new_figure(12.5, 4.2)
        axes = figure.subplots(1, 3)
        largest = float(np.abs(true).max())
        for axis, matrix, title in ((axes[0], true, f"H of {formula}, reference"), (axes[1], predicted, "predicted")):
            _image(figure, axis, matrix, title, largest, "Hartree")
        _image(figure, axes[2], 1e6 * error, f"difference, MAE {mae} µEh", 1e6 * float(np.abs(error).max()), "µEh")
    return figure


def _image(figure: Figure, axis: Any, matrix: np.ndarray, title: str, largest: float, unit: str) -> None:
    from matplotlib.colors import Normalize, SymLogNorm

    linear = unit == "µEh"
    limit = largest or 1.0
    norm: Any = Normalize(-limit, limit) if linear else SymLogNorm(_LINEAR, vmin=-limit, vmax=limit)
    picture = axis.imshow(matrix, cmap="RdBu_r", norm=norm, interpolation="nearest")
    axis.set(title=title, xlabel="orbital", ylabel="orbital")
    axis.grid(False)
    figure.colorbar(picture, ax=axis, label=unit, shrink=0.85)
