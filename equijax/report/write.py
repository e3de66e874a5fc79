"""`report.html` from whatever a run directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from equijax.report.curves import learning_curves
from equijax.report.dynamics import dynamics_plot, read_dynamics
from equijax.report.errors import (
    ErrorRow,
    error_row,
    rows_by_config_type,
    rows_by_element,
    worst_frames,
    write_worst_frames,
)
from equijax.report.hamiltonians import hamiltonian_sections
from equijax.report.page import Page, shown
from equijax.report.parity import parity_plot
from equijax.report.run_files import RunFiles, read_run
from equijax.report.style import data_uri, to_png
from equijax.report.tensors import target_section
from equijax.report.uncertainty import uncertainty_section
from equijax.weights.atomic_file import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MD_EXPLANATION = (
    "Conserved energy: the total energy, minus the heat that a thermostat has supplied. Drift is the slope of a "
    "straight line through it, the residual the standard deviation around that line."
    " Kinks in the potential show in the residual long before they show in the drift."
)


def write_report(directory: str | Path) -> Path:
    """Write `report.html` and `worst_frames.xyz` into a run directory and return the report's path.

    Works on finished, running and killed runs: what is not there is left out, what is damaged is noted. Raises
    EquijaxError only when the directory holds nothing of a run, or cannot be written to.
    """
    run = read_run(directory)
    page = Page(run.directory.resolve().name, _lead(run))
    for note in run.notes:
        page.warning(note)
    if run.crash:
        _crash(page, run)
    elif run.records and not run.is_finished:
        page.warning(
            "This run has not finished: it was stopped or is still going on. "
            f"Continue it with `equijax train CONFIG --output {run.directory} --resume`."
        )
    _headline(page, run)
    _accuracy(page, run)
    hamiltonian_sections(page, run.directory, run.test_metrics)
    target_section(page, run)
    _curves(page, run)
    _parity(page, run)
    uncertainty_section(page, run.predictions, _picture)
    _split_errors(page, run)
    _dynamics(page, run)
    _data(page, run)
    _model_card(page, run)
    _configuration(page, run)
    return write_atomically(run.directory / "report.html", page.text().encode())


def _picture(page: Page, figure: Figure | None, description: str) -> None:
    if figure is not None:
        page.picture(data_uri(to_png(figure)), description)


def _lead(run: RunFiles) -> str:
    model = run.config.get("model", {})
    parts = [str(model.get("name", "")).upper(), str(model.get("hidden_irreps", "")), str(run.config.get("dtype", ""))]
    return "equijax report" + "".join(f" · {part}" for part in parts if part)


def _headline(page: Page, run: RunFiles) -> None:
    tiles = []
    for name, predictions in run.predictions.items():
        row = error_row(name, predictions)
        if row.energy_rmse == row.energy_rmse:
            tiles.append((f"energy RMSE, {name}", f"{shown(row.energy_rmse)} meV/atom"))
        if row.forces_rmse == row.forces_rmse:
            tiles.append((f"force RMSE, {name}", f"{shown(row.forces_rmse)} meV/Å"))
    valid = [record for record in run.records if record.get("kind") == "valid"]
    if valid:
        last = valid[-1]
        tiles.append(("epochs", str(last.get("epoch", "?"))))
        if isinstance(last.get("time_s"), (int, float)):
            tiles.append(("training time", _duration(float(last["time_s"]))))
    if tiles:
        page.tiles(tiles)


_ERROR_COLUMNS = (
    "structures",
    "E RMSE meV/atom",
    "E MAE meV/atom",
    "F RMSE meV/Å",
    "F MAE meV/Å",
    "F max meV/Å",
    "stress RMSE meV/Å³",
)


def _cells(row: ErrorRow) -> tuple[Any, ...]:
    return (
        row.name,
        row.count,
        row.energy_rmse,
        row.energy_mae,
        row.forces_rmse,
        row.forces_mae,
        row.forces_max,
        row.stress_rmse,
    )


def _error_table(page: Page, first: str, rows: list[ErrorRow]) -> None:
    cells = [_cells(row) for row in rows]
    # A column that no row has, such as the stress of molecules, is left out.
    kept = [i for i in range(8) if i < 2 or any(row[i] == row[i] for row in cells)]
    columns = (first, *_ERROR_COLUMNS)
    page.table([columns[i] for i in kept], [[row[i] for i in kept] for row in cells])


def _accuracy(page: Page, run: RunFiles) -> None:
    if run.predictions:
        page.section("Accuracy")
        _error_table(page, "set", [error_row(name, p) for name, p in run.predictions.items()])
        page.paragraph("Errors of the saved model: the averaged weights of the epoch with the lowest validation loss.")
        return
    rows = []
    for name, metrics in run.test_metrics.items():
        if isinstance(metrics, dict) and "n_structures" in metrics and "hamiltonian" not in metrics:
            energy, forces, stress = (metrics.get(key, {}) for key in ("energy", "forces", "stress"))
            values = (energy.get("rmse_per_atom"), energy.get("mae_per_atom"), forces.get("rmse"), forces.get("mae"),
                      None, stress.get("rmse"))  # fmt: skip
            numbers = [float("nan") if value is None else 1e3 * float(value) for value in values]
            rows.append(ErrorRow(name, int(metrics["n_structures"]), *numbers))
    if rows:
        page.section("Accuracy")
        _error_table(page, "set", rows)


def _curves(page: Page, run: RunFiles) -> None:
    figure = learning_curves(run.records)
    if figure is not None:
        page.section("Learning curves")
        _picture(page, figure, "Loss, energy and force errors and learning rate over the epochs of the training")
        averaged = run.config.get("training", {}).get("ema_decay")
        if averaged:
            page.paragraph(
                f"Validation uses the exponential moving average of the weights (decay {averaged}); training errors "
                "are those of the weights as they move, before each step."
            )


def _parity(page: Page, run: RunFiles) -> None:
    if run.predictions:
        page.section("Predictions against reference")
        for name, predictions in run.predictions.items():
            _picture(page, parity_plot(predictions, name), f"Parity plots and residuals of the set {name}")
        page.paragraph("Colour: number of points in the neighbourhood, on a logarithmic scale; yellow is dense.")


def _split_errors(page: Page, run: RunFiles) -> None:
    if not run.predictions:
        return
    page.section("Where the errors are")
    for name, predictions in run.predictions.items():
        by_type = rows_by_config_type(predictions)
        if len(by_type) > 1:
            page.subsection(f"{name}, by config_type")
            _error_table(page, "config_type", by_type)
        by_element = [row for row in rows_by_element(predictions) if row.forces_rmse == row.forces_rmse]
        if by_element:
            page.subsection(f"{name}, by element")
            page.table(
                ("element", "atoms", "F RMSE meV/Å", "F MAE meV/Å", "F max meV/Å"),
                [(row.name, row.count, row.forces_rmse, row.forces_mae, row.forces_max) for row in by_element],
            )
    for name, predictions in run.predictions.items():
        page.subsection(f"{name}, worst frames")
        page.table(
            ("frame", "file", "config_type", "atoms", "|E| error meV/atom", "F RMSE meV/Å", "F max meV/Å", "at atom"),
            [
                (w.frame if w.frame >= 0 else w.index, Path(w.file).name or "–", w.config_type or "–", w.num_atoms,
                 w.energy_error, w.forces_rmse, w.forces_max, w.worst_atom if w.worst_atom >= 0 else None)
                for w in worst_frames(predictions)
            ],
            text_columns=(1, 2),
        )  # fmt: skip
    write_worst_frames(run.directory / "worst_frames.xyz", run.predictions)
    page.paragraph("worst_frames.xyz holds these frames with reference and predicted forces, for a structure viewer.")


def _dynamics(page: Page, run: RunFiles) -> None:
    runs = {name: read_dynamics(records) for name, records in run.md_logs.items()}
    usable = {name: dynamics for name, dynamics in runs.items() if dynamics is not None}
    if not usable:
        return
    page.section("Molecular dynamics")
    for name, dynamics in usable.items():
        _picture(page, dynamics_plot(dynamics, name), f"Temperature and energies of the trajectory {name}")
    rows = []
    for name, dynamics in usable.items():
        drift, residual = dynamics.drift()
        length = float(dynamics.time[-1] - dynamics.time[0])
        temperature = float(dynamics.temperature.mean())
        rows.append((name, dynamics.ensemble, dynamics.num_atoms, length, temperature, drift, residual))
    columns = ("trajectory", "ensemble", "atoms", "length ps", "mean T K", "drift meV/atom/ps", "residual meV/atom")
    page.table(columns, rows, text_columns=(1,))
    if any(dynamics.conserved is not None for dynamics in usable.values()):
        page.paragraph(_MD_EXPLANATION)


def _data(page: Page, run: RunFiles) -> None:
    summary = run.data_summary
    if not summary:
        return
    page.section("Data")
    sets = summary.get("sets", {})
    labels = sorted({label for entry in sets.values() for label in entry.get("labels", {})})
    rows = [
        (name, entry.get("frames"), *(entry.get("labels", {}).get(label) for label in labels))
        for name, entry in sets.items()
    ]
    page.table(("set", "frames", *(f"with {label}" for label in labels)), rows)
    facts = [
        ("average neighbours within the cutoff", summary.get("avg_num_neighbors")),
        ("scale (RMS force), eV/Å", summary.get("scale")),
        ("shift (mean interaction energy), eV/atom", summary.get("shift")),
    ]
    page.table(("statistic", "value"), [fact for fact in facts if fact[1] is not None])
    energies = summary.get("atomic_energies", {})
    rows = [(element, f"{energy:.6f}") for element, energy in energies.items()]
    page.table(("element", "isolated atom, eV"), rows)


def _model_card(page: Page, run: RunFiles) -> None:
    card = run.model_metadata
    if not card:
        return
    page.section("Model card")
    config = card.get("model") or card.get("config") or run.config.get("model", {})
    rows: list[tuple[str, Any]] = [("file", run.directory / "model.safetensors")]
    rows.append(("size", f"{card['file_bytes'] / 1e6:.2f} MB, {card['parameter_count']:,} parameters"))
    if run.data_summary.get("elements"):
        rows.append(("elements", ", ".join(run.data_summary["elements"])))
    rows += [(key, config[key]) for key in ("name", "cutoff", "hidden_irreps", "lmax", "num_layers") if key in config]
    rows += [(key, card[key]) for key in ("dtype", "format_version") if key in card]
    versions = card.get("versions")
    if isinstance(versions, dict):
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in versions.items())))
    origin = run.data_summary.get("started_from")
    if isinstance(origin, dict):
        rows.append(("started from", origin.get("file")))
        old, new = origin.get("atomic_energies", {}), run.data_summary.get("atomic_energies", {})
        moved = [f"{name} {new[name] - old[name]:+.4f}" for name in old if new.get(name, old[name]) != old[name]]
        rows.append(("isolated atoms relative to that model, eV", ", ".join(moved) or "the same"))
        if origin.get("new_elements"):
            rows.append(("new elements", ", ".join(origin["new_elements"])))
    for file, digest in run.data_summary.get("fingerprints", {}).items():
        rows.append((f"sha256 of {Path(file).name}", digest))
    page.table(("", ""), rows, text_columns=(0, 1))


def _configuration(page: Page, run: RunFiles) -> None:
    if run.config:
        page.section("Configuration")
        text = (run.directory / "config.yaml").read_text(encoding="utf-8", errors="replace")
        page.details("config.yaml, with every default resolved", text)


def _crash(page: Page, run: RunFiles) -> None:
    events = [record for record in run.records if record.get("event") == "crash"]
    message = events[-1].get("message", "") if events else ""
    page.warning(f"This run stopped on an error. {message}".strip())
    for name, text in run.crash.items():
        page.details(f"crash/{name}", text)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
