"""`equijax scf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from equijax.cli.evaluate import check_dtype
from equijax.cli.hamiltonians import molecules
from equijax.errors import EquijaxError, located

if TYPE_CHECKING:
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.structure import Structure


def scf(
    model: Annotated[Path, typer.Argument(help="Model of Hamiltonians (.safetensors).")],
    structures: Annotated[
        Path, typer.Argument(help="Molecules: any format that ASE reads, or a Hamiltonian data set.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the result to this file; - is stdout.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many molecules, from the first.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
) -> None:
    """Start PySCF's SCF from the predicted density, and from minao: how many cycles that saves."""
    from equijax.doctor import require_healthy_backend
    from equijax.hamiltonians.model import HamiltonianModel
    from equijax.weights import load
    from equijax.weights.atomic_file import write_atomically

    check_dtype(dtype)
    require_healthy_backend()
    loaded = load(model)
    if not isinstance(loaded, HamiltonianModel):
        raise located(
            f"{loaded.model_config.name} is a potential, and the SCF starts from a predicted Hamiltonian",
            file=model,
            fix="train a model with model.name: sphnet or qhnet",
        )
    frames = molecules(structures)[:limit]
    result = compare(loaded, frames, dtype, typer.echo if str(json_file) != "-" else None)
    text = json.dumps(result, indent=1, allow_nan=False)
    if str(json_file) == "-":
        typer.echo(text)
        return
    if json_file is not None:
        write_atomically(json_file, (text + "\n").encode())
    typer.echo(
        f"{result['n_structures']} molecules: {result['cycles_minao']:.2f} cycles from minao, "
        f"{result['cycles_predicted']:.2f} from the model, ratio {result['ratio']:.3f}; the energy of the predicted "
        f"density is {result['energy_error_uEh']:.1f} µEh above that of the SCF"
    )


def compare(model: HamiltonianModel, frames: list[Structure], dtype: Any, show: Any = None) -> dict[str, Any]:
    """Cycles and energies of every molecule from both starting densities, and their means; `show` takes lines.

    `ratio` is the mean over molecules of cycles from the model over cycles from minao; cycles are PySCF's `mf.cycles`
    at its default convergence. Raises EquijaxError, naming the frame, for an SCF that does not converge.
    """
    from equijax.hamiltonians import pyscf_bridge

    basis, functional = model.layout.basis, model.functional
    if not frames:
        raise EquijaxError("there are no molecules")
    rows: list[dict[str, Any]] = []
    if show is not None:
        show(f"{'molecule':>24s} {'minao':>6s} {'model':>6s} {'energy Eh':>14s} {'E[P] - E µEh':>13s}")
    for frame in frames:
        density = model.predict(frame, ("density",), dtype=dtype)["density"]
        reference = pyscf_bridge.run_scf(frame, basis, functional)
        started = pyscf_bridge.run_scf(frame, basis, functional, density)
        for what, run in (("minao", reference), ("the predicted density", started)):
            if not run.converged:
                raise located(f"the SCF from {what} did not converge", file=frame.file, frame=frame.frame)
        excess = pyscf_bridge.energy_of_density(frame, basis, functional, density) - reference.energy
        rows.append(
            {
                "frame": frame.frame,
                "cycles_minao": reference.cycles,
                "cycles_predicted": started.cycles,
                "energy_minao": reference.energy,
                "energy_predicted": started.energy,
                "energy_error_uEh": 1e6 * excess,
            }
        )
        if show is not None:
            name = f"{Path(frame.file or 'structure').stem} {frame.frame}"
            show(f"{name:>24s} {reference.cycles:6d} {started.cycles:6d} {reference.energy:14.6f} {1e6 * excess:13.2f}")
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "frame"}
    return {
        "n_structures": len(rows),
        "ratio": float(np.mean([row["cycles_predicted"] / row["cycles_minao"] for row in rows])),
        **{key: means[key] for key in ("cycles_minao", "cycles_predicted", "energy_error_uEh")},
        "molecules": rows,
    }
