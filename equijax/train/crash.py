"""The report that is written when a loss, a gradient or a prediction is not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.precision import jit
from equijax.train.config import LossConfig
from equijax.train.metrics_log import json_safe
from equijax.train.parameter_groups import parameter_path
from equijax.train.setup import TrainingTask
from equijax.train.step import batch_loss
from equijax.weights.atomic_file import write_atomically


def module_norms(tree: Any) -> dict[str, float]:
    """Norm of the leaves below each module, `{"interactions_0/linear": 0.3, ...}`; NaN where one leaf is NaN."""
    squares: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        module = "/".join(parameter_path(path).split("/")[:2])
        with np.errstate(over="ignore", invalid="ignore"):
            squares[module] = squares.get(module, 0.0) + float(np.sum(np.asarray(leaf, np.float64) ** 2))
    return {module: float(np.sqrt(square)) for module, square in squares.items()}


def gradient_norms(
    task: TrainingTask, loss: LossConfig, params: Any, batch: Any, weights: dict[str, Any]
) -> dict[str, float]:
    """Norm of the loss gradient per module for one batch, of a committee over all members. Of several devices all
    compute their part of the batch."""

    def of_params(params: Any, batch: Any) -> Any:
        is_part = task.devices is not None
        return batch_loss(task.objective, task.module, loss, params, batch, weights, is_part=is_part)

    gradient_of = jax.grad(of_params, has_aux=True)
    if task.training.committee > 1:
        gradient_of = jax.vmap(gradient_of, in_axes=(0, None))
    gradient, _ = jit(gradient_of if task.devices is None else task.devices.summed(gradient_of))(params, batch)
    return module_norms(gradient)


def write_crash_report(directory: Path, frames: Sequence[Any], report: dict[str, Any]) -> Path:
    """`crash/report.json`, and the frames of the batch as `crash/frames.xyz` with their labels."""
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    directory.mkdir(parents=True, exist_ok=True)
    named = [
        {
            "file": f.structure.file,
            "frame": f.structure.frame,
            "config_type": f.structure.info.get("config_type"),
        }
        for f in frames
    ]
    content = json.dumps(json_safe({**report, "frames": named}), indent=1, allow_nan=False)
    path = write_atomically(directory / "report.json", content.encode())
    images = []
    for frame in frames:
        atoms = frame.structure.to_ase()
        labels = {k: np.asarray(v) for k, v in frame.structure.labels.items() if k in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    if images:
        ase.io.write(directory / "frames.xyz", images, format="extxyz")
    return path
