"""Checkpoints of fairchem 1.x as plain arrays: read without its code, and with every entry accounted for.

A checkpoint is a torch file of tensors and plain values; torch reads it with `weights_only`, so nothing is executed. An
`.npz` export has the state dict under `state/<key>` and the rest as JSON text under `config`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equijax.errors import EquijaxError, did_you_mean, located
from equijax.weights.torch_state import TorchState, read_export, read_torch, state_of

FORMAT = "fairchem export"
FORMAT_VERSION = 1

CONSTANTS = (
    (r"(.*\.)?SO3_grid\..*", "grids of all degrees"),
    (r"(.*\.)?SO3_rotation\..*", "index tables of rotations"),
    (r"(.*\.)?mappingReduced\..*", "index tables of the order m"),
    (r"(.*\.)?expand_index", "index tables of the degree"),
    (r"(.*\.)?balance_degree_weight", "weights of the degrees in a norm"),
    (r"(.*\.)?distance_expansion\.offset", "centres of the Gaussians"),
    (r"(.*\.)?sphere_points", "points where eSCN reads its results"),
    (r"(.*\.)?sphharm_weights\.\d+", "harmonics at these points"),
)
"""Arrays that follow from the config, by the name that ends their key; those that a test can hold are compared."""


@dataclasses.dataclass(frozen=True)
class FairchemExport:
    """`model`: the model's part of the config; `normalizers` of targets: mean and rmsd, eV or eV/Å; `element_energies`
    by atomic number, eV; `state`: the state dict without the prefix `module.`, averaged weights where there are any."""

    model: Mapping[str, Any]
    normalizers: Mapping[str, Mapping[str, float]]
    state: Mapping[str, np.ndarray]
    element_energies: np.ndarray | None = None


class FairchemState(TorchState):
    """A state dict that also knows constants, and parameters that reach no result."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.unused: dict[str, str] = {}  # parameters that reach no result, and why

    def leave_out(self, key: str, reason: str, *shape: int) -> None:
        """Take a parameter that reaches no result."""
        self.take(key, *shape)
        self.unused[key] = reason

    def constant(self, key: str, ours: np.ndarray) -> None:
        """Compare a stored constant with ours, if it is there."""
        if key not in self._left:
            return
        theirs = np.asarray(self._left.pop(key), np.float64)
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-5, atol=1e-6 * np.abs(ours).max()):
            raise EquijaxError(f"state dict: {key} is not the constant that its config stands for; not supported")

    def finish(self) -> None:
        """Drop the constants; raise when anything else is left."""
        self._left = {key: array for key, array in self._left.items() if not _is_constant(key)}
        self.refuse_rest("model")


def _is_constant(key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern, _ in CONSTANTS)


class TargetUnits(NamedTuple):
    """Energies are `energy_rmsd` times the output plus `energy_mean` per structure, eV; forces `force_rmsd` times."""

    energy_mean: float
    energy_rmsd: float
    force_rmsd: float


def target_units(normalizers: Mapping[str, Mapping[str, float]]) -> TargetUnits:
    """What the outputs stand for; those of a checkpoint without normalizers are in eV and eV/Å."""
    if normalizers.keys() - {"energy", "forces"}:
        raise EquijaxError(f"normalizers {', '.join(normalizers)}: expected energy and forces only")
    energy, forces = (normalizers.get(key, {"mean": 0.0, "rmsd": 1.0}) for key in ("energy", "forces"))
    if forces["mean"] != 0:
        raise EquijaxError(f"normalizers: forces have the mean {forces['mean']}; expected 0")
    return TargetUnits(energy["mean"], energy["rmsd"], forces["rmsd"])


def split_model(
    model: Mapping[str, Any], names: Sequence[str], energy_heads: Sequence[str], force_heads: Sequence[str]
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Options of the backbone, and what the keys of backbone, energy and forces begin with.

    Raises EquijaxError unless the backbone is one of `names`, with one head of each kind.
    """
    prefixes = {"backbone": "", "energy": "energy_block", "forces": "force_block"}
    backbone = model
    if "backbone" in model:
        backbone, prefixes = model["backbone"], {"backbone": "backbone."}
        for head, options in model["heads"].items():
            if options["module"] in energy_heads and options.get("reduce", "sum") == "sum":
                prefixes["energy"] = f"output_heads.{head}.energy_block"
            elif options["module"] in force_heads:
                prefixes["forces"] = f"output_heads.{head}.force_block"
            else:
                raise EquijaxError(f"head {head}: equijax's {names[0]} has no {options['module']} with {dict(options)}")
        if len(prefixes) != 3 or len(model["heads"]) != 2:
            raise EquijaxError(f"heads {', '.join(model['heads'])}: expected one for the energy and one for forces")
    if backbone_name(model) not in names:
        raise EquijaxError(f"cannot convert the model {backbone_name(model)}; expected one of {', '.join(names)}")
    return backbone, prefixes


def backbone_name(model: Mapping[str, Any]) -> str:
    """The name under which fairchem registers the model, or its backbone."""
    backbone = model.get("backbone", model)
    return str(backbone.get("model") or backbone.get("name"))


def with_defaults(
    backbone: Mapping[str, Any], defaults: Mapping[str, Any], irrelevant: Sequence[str]
) -> dict[str, Any]:
    """The options that matter, all of them; EquijaxError for one that is not known."""
    for key in backbone:
        if key not in defaults and key not in irrelevant:
            raise EquijaxError(f"config of the model: unknown option {key}; {did_you_mean(key, defaults)}")
    return {**defaults, **{key: value for key, value in backbone.items() if key in defaults}}


def kept_elements(elements: Sequence[int] | None, rows: int) -> list[int]:
    """Atomic numbers, ascending; by default all that an embedding of `rows` rows, from Z = 0, has one for."""
    kept = sorted(range(1, rows) if elements is None else set(elements))
    if not kept or kept[0] < 1 or kept[-1] >= rows:
        raise EquijaxError(f"elements {kept}: expected atomic numbers from 1 to {rows - 1}")
    return kept


def stacked(trees: Sequence[Any]) -> Any:
    """One tree whose arrays have a leading axis for the layers."""
    if isinstance(trees[0], dict):
        return {key: stacked([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)


def read_fairchem(path: str | Path) -> FairchemExport:
    """A checkpoint `.pt` of fairchem (needs torch, extra `interop`), or an `.npz` export."""
    path = Path(path)
    if not path.is_file():
        raise located("there is no such file", file=path)
    return _read_npz(path) if path.suffix == ".npz" else _from_checkpoint(_read_torch(path), path)


def _read_npz(path: Path) -> FairchemExport:
    config, arrays = read_export(path, "fairchem", FORMAT, FORMAT_VERSION)
    return FairchemExport(config["model"], config["normalizers"], _without_module(state_of(arrays)))


def _read_torch(path: Path) -> Mapping[str, Any]:
    checkpoint = read_torch(path, "a checkpoint that fairchem 1.x saved")
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint or "config" not in checkpoint:
        raise located("is not a checkpoint of fairchem", file=path, expected="entries state_dict and config")
    return checkpoint


def _from_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> FairchemExport:
    config = checkpoint["config"]
    model = config.get("model")
    if isinstance(model, str):
        model = {**config.get("model_attributes", {}), "name": model}
    if not isinstance(model, Mapping):
        raise located("config has no model", file=path, key="config", expected="a checkpoint that fairchem 1.x saved")
    state = _without_module({key: value.cpu().numpy() for key, value in checkpoint["state_dict"].items()})
    average = checkpoint.get("ema")
    if average:
        state = with_averages(state, [tensor.cpu().numpy() for tensor in average["shadow_params"]])
    names = {"target": "energy", "grad_target": "forces"}
    normalizers = {
        names.get(key, key): {"mean": float(entry["mean"]), "rmsd": float(entry.get("rmsd", entry.get("std")))}
        for key, entry in checkpoint.get("normalizers", {}).items()
    }
    references = checkpoint.get("elementrefs", {}).get("energy")
    energies = None if references is None else np.asarray(references["element_references"], np.float64)
    return FairchemExport(model, normalizers, state, energies)


def _without_module(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys without the prefixes that parallel training adds."""
    return {re.sub(r"^(module\.)+", "", key): value for key, value in state.items()}


def with_averages(state: Mapping[str, np.ndarray], averages: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with the moving averages, which have no names, in the places of its parameters in order."""
    names = [key for key in state if not _is_constant(key) and not key.endswith("energy_lin_ref")]
    shapes = [state[key].shape for key in names]
    if shapes != [average.shape for average in averages]:
        raise EquijaxError(
            f"ema: {len(averages)} averaged arrays do not match the {len(names)} parameters; expected the same shapes"
        )
    return {**state, **dict(zip(names, averages, strict=True))}
