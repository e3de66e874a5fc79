"""`equijax calibrate`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equijax.cli.evaluate import KeysOption, UnitsOption, check_dtype, read_labelled
from equijax.errors import EquijaxWarning, located

if TYPE_CHECKING:
    from equijax.potential.potential import Potential


def calibrate(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors) of one model or of a committee.")],
    valid: Annotated[
        list[Path], typer.Option("--valid", help="Labelled structures that the uncertainties are scaled to.")
    ],
    output: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    train: Annotated[
        list[Path] | None,
        typer.Option("--train", help="The structures that the model was trained on; may be repeated."),
    ] = None,
    member: Annotated[int | None, typer.Option(help="Of a committee, the one model to take.")] = None,
    forces: Annotated[
        bool, typer.Option(help="Count the forces of the training structures as well as their energies.")
    ] = True,
    key: KeysOption = None,
    unit: UnitsOption = None,
    stress_sign: Annotated[int, typer.Option(help="-1 when stress labels have VASP's sign.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", show_default="the model's")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Give a trained model uncertainties of its energies, forces and stress, or scale those of a committee."""
    from equijax.cli.structure_files import check_output
    from equijax.doctor import require_healthy_backend
    from equijax.train.evaluate import evaluate
    from equijax.train.last_layer_fit import with_last_layer
    from equijax.train.uncertainty_metrics import calibrated_committee
    from equijax.weights import load_potential
    from equijax.weights.model_file import save_potential

    check_dtype(dtype)
    check_output(output, (".safetensors",), overwrite)
    require_healthy_backend()
    potential = load_potential(model)
    if member is not None:
        potential = potential.member(member)
    if potential.committee is not None and train:
        raise located(
            "a committee needs no training structures", file=model, key="--train", fix="leave it out, or add --member 0"
        )
    if potential.committee is None and not train:
        raise located(
            "is one model, whose uncertainties need the structures it was trained on", file=model, key="--train"
        )
    frames = {
        option: [s for path in paths for s in read_labelled(path, key, unit, stress_sign, potential.targets)]
        for option, paths in (("--train", train or []), ("--valid", valid))
    }
    warn_of_other_files(potential, train or [])
    if potential.committee is not None:
        calibrated = calibrated_committee(potential, frames["--valid"])
    else:
        calibrated = with_last_layer(
            potential,
            frames["--train"],
            frames["--valid"],
            use_forces=forces,
            dtype=dtype,  # type: ignore[arg-type]
            report=lambda line: typer.echo(f"\r{line}", nl=False, err=True),
        )
        typer.echo("", err=True)
    save_potential(calibrated, output)
    for line in (*describe(calibrated), *_quality(evaluate(calibrated, frames["--valid"]).metrics)):
        typer.echo(line)
    typer.echo(f"wrote {output}")


def warn_of_other_files(potential: Potential, train: list[Path]) -> None:
    """Warn of files that the model file does not name among those it was trained with."""
    from equijax.datasets.files import sha256

    known = potential.metadata.get("training", {}).get("fingerprints")
    if not isinstance(known, dict):
        return
    for path in train:
        if sha256(path) not in known.values():
            warnings.warn(
                f"{path}: --train: by its checksum the model was not trained with this file; uncertainties will be too "
                "small near its structures",
                EquijaxWarning,
                stacklevel=2,
            )


def describe(potential: Potential) -> list[str]:
    """Lines about the uncertainties of a calibrated potential."""
    record, factors = potential.metadata["uncertainty"], potential.calibration
    assert factors is not None
    if record["kind"] == "committee":
        return [
            f"committee of {potential.committee}: standard deviations times {factors.energy:.3g} (energy), "
            f"{factors.forces:.3g} (forces), {factors.stress:.3g} (stress)"
        ]
    unit = "eV/Å" if record["training_forces"] else "eV"
    factor = f"{factors.energy:.3g} (energy), {factors.forces:.3g} (forces), {factors.stress:.3g} (stress)"
    return [
        f"last layer: {record['features']} features, {record['training_frames']} training structures, "
        f"{record['training_forces']} force components; an energy weighs {record['energy_weight']:.3g} of them",
        f"regulariser: {record['relative_regulariser']:.1e} of the mean eigenvalue; scales in {unit}: {factor}",
    ]


def _quality(metrics: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("energy", "forces", "stress"):
        found = metrics.get(name, {}).get("uncertainty", {})
        if "coverage_1sigma" in found:
            rank = f", rank correlation {found['spearman']:.2f}" if "spearman" in found else ""
            lines.append(
                f"{name}, validation: {100 * found['coverage_1sigma']:.0f} % of errors within 1 sigma, "
                f"{100 * found['coverage_2sigma']:.0f} % within 2{rank}"
            )
    return lines
