"""The torch side of the mace-torch import: read a module, evaluate it, write plain arrays.

Needs mace-torch (extra `interop`). mace-torch stores models as Python pickles, and unpickling runs code that
the file contains: only `read_mace_torch` does it, only when the user asks to convert that file.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.structure import Structure
from equijax.weights.mace_torch_export import FORMAT, FORMAT_VERSION, MaceTorchExport, ReferenceBatch

_MODEL_CLASSES = ("MACE", "ScaleShiftMACE")


def _import_torch() -> Any:
    try:
        # mace first: it lets e3nn 0.4.4 load its constants under torch >= 2.6.
        import mace  # noqa: F401
        import torch
    except ImportError as error:
        raise EquijaxError(
            f"reading a mace-torch model needs mace-torch ({error}); pip install 'equijax[interop]'"
        ) from error
    return torch


def read_mace_torch(path: str | Path) -> Any:
    """The torch module in a `.model` file. This executes code that the file contains."""
    if not Path(path).is_file():
        raise located("no such file", file=path)
    torch = _import_torch()
    warnings.warn(
        f"{path} is a Python pickle: reading it EXECUTES CODE FROM THE FILE. Convert only files whose "
        "origin you trust; the converted .safetensors file holds numbers only.",
        EquijaxWarning,
        stacklevel=2,
    )
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise located(
            f"torch cannot read it ({type(error).__name__}: {error})",
            file=path,
            expected="a model that mace-torch saved with torch.save, such as NAME.model",
        ) from error


def export_mace_torch(source: Any, references: dict[str, ReferenceBatch] | None = None) -> MaceTorchExport:
    """State dict, config and reference results of a mace-torch module, or of the `.model` file at a path.

    The references are evaluated in float64 for every head; by default a cluster that holds every element of
    the model and a small triclinic crystal. Raises EquijaxError for modules that are not MACE energy models.
    """
    torch = _import_torch()
    module = read_mace_torch(source) if isinstance(source, str | Path) else source
    name = type(module).__name__
    if name == "RecursiveScriptModule":
        raise EquijaxError("this is a compiled TorchScript model; convert the .model file behind it")
    if name not in _MODEL_CLASSES:
        raise EquijaxError(f"cannot convert a {name}; expected one of {', '.join(_MODEL_CLASSES)}")
    config = module_config(module)
    module = copy.deepcopy(module).cpu().eval()
    # References are computed in float64 from the stored numbers, so that rounding does not hide mistakes.
    state = {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}
    module = module.double()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if references is None:
        references = default_references([int(z) for z in config["atomic_numbers"]], config["r_max"])
    with _float64(torch):
        evaluated = {
            key: ReferenceBatch(
                **{f: getattr(batch, f) for f in ("numbers", "positions", "num_atoms", "cell", "pbc")},
                outputs={head: evaluate(module, batch, i) for i, head in enumerate(config["heads"])},
            )
            for key, batch in references.items()
        }
    return MaceTorchExport(config, state, evaluated)


@contextlib.contextmanager
def _float64(torch: Any) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _class_name(module: Any, attribute: str) -> str | None:
    found = getattr(module, attribute, None)
    return None if found is None else type(found).__name__


def _activation(block: Any) -> dict[str, Any] | None:
    """Name and normalisation constant of the one activation of an e3nn Activation block."""
    acts = getattr(getattr(block, "non_linearity", None), "acts", None)
    if not acts:
        return None
    function = getattr(acts[0], "f", acts[0])
    return {
        "name": getattr(function, "__name__", str(function)),
        "constant": float(getattr(acts[0], "cst", 1.0)),
    }


def module_config(module: Any) -> dict[str, Any]:
    """Everything about the module that its state dict does not say, as JSON types.

    Attributes that old mace-torch versions lack get the value that those versions meant.
    """
    radial = module.radial_embedding
    interactions = []
    for interaction in module.interactions:
        layers = getattr(interaction.conv_tp_weights, "hs", None)
        first = getattr(interaction.conv_tp_weights, "layer0", None)
        interactions.append(
            {
                "class": type(interaction).__name__,
                "avg_num_neighbors": float(interaction.avg_num_neighbors),
                "radial_mlp": None if layers is None else [int(n) for n in layers],
                "activation_constant": None if first is None else float(first.act.cst),
            }
        )
    contractions = [getattr(p.symmetric_contractions, "contractions", None) for p in module.products]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_class": type(module).__name__,
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "r_max": float(module.r_max),
        "radial_basis": _class_name(radial, "bessel_fn"),
        "cutoff_function": _class_name(radial, "cutoff_fn"),
        "polynomial_cutoff_power": int(radial.cutoff_fn.p),
        "num_bessel": int(radial.out_dim),
        "distance_transform": _class_name(radial, "distance_transform"),
        "apply_cutoff": bool(getattr(module, "apply_cutoff", True)),
        "max_ell": int(module.spherical_harmonics._lmax),
        "interactions": interactions,
        "layer_irreps": [str(product.linear.irreps_out) for product in module.products],
        "correlation": [None if c is None else len(c[0].weights) + 1 for c in contractions],
        "readouts": [
            {
                "class": type(readout).__name__,
                "hidden_irreps": str(getattr(readout, "hidden_irreps", "")),
                "activation": _activation(readout),
            }
            for readout in module.readouts
        ],
        "heads": [str(head) for head in getattr(module, "heads", ["Default"])],
        "atomic_numbers": [int(z) for z in module.atomic_numbers],
        "use_so3": bool(getattr(module, "use_so3", False)),
        "use_agnostic_product": bool(getattr(module, "use_agnostic_product", False)),
        "use_last_readout_only": bool(getattr(module, "use_last_readout_only", False)),
        "has_embeddings": hasattr(module, "joint_embedding"),
        "edge_irreps": None if getattr(module, "edge_irreps", None) is None else str(module.edge_irreps),
        "pair_repulsion": _class_name(module, "pair_repulsion_fn"),
        "cuequivariance": any(
            getattr(getattr(block, "cueq_config", None), "enabled", False)
            for block in (*module.interactions, *module.products)
        ),
    }


def default_references(atomic_numbers: list[int], r_max: float) -> dict[str, ReferenceBatch]:
    """Reach every parameter: a cluster with every element, and a triclinic cell smaller than the cutoff."""
    rng = np.random.default_rng(0)
    spacing = 0.36 * r_max
    numbers = np.resize(np.array(atomic_numbers), max(8, len(atomic_numbers)))
    side = int(np.ceil(len(numbers) ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[: len(numbers)]
    cluster = Structure(numbers, (grid + rng.uniform(-0.15, 0.15, grid.shape)) * spacing)
    cell = np.array([[0.62, 0.0, 0.0], [0.24, 0.58, 0.0], [-0.11, 0.19, 0.66]]) * r_max
    fractional = np.array([[0.03, 0.05, 0.02], [0.47, 0.55, 0.51]])
    crystal = Structure(np.resize(np.array(atomic_numbers), 2), fractional @ cell, cell, (True, True, True))
    return {"elements": ReferenceBatch.from_structures([cluster, crystal])}


def evaluate(module: Any, batch: ReferenceBatch, head: int) -> dict[str, np.ndarray]:
    """Energies, forces, stress and node features of a float64 mace-torch module for one head."""
    import torch
    from mace.data.neighborhood import get_neighborhood

    species = {int(z): i for i, z in enumerate(module.atomic_numbers)}
    edges, shifts, unit_shifts, cells, offset = [], [], [], [], 0
    for structure in batch.structures():
        index, shift, unit_shift, cell = get_neighborhood(
            structure.positions, module.r_max.item(), structure.pbc, structure.cell.copy()
        )
        edges.append(index + offset)
        shifts.append(shift)
        unit_shifts.append(unit_shift)
        cells.append(cell)
        offset += len(structure)
    one_hot = np.eye(len(species))[[species[int(z)] for z in batch.numbers]]
    graphs = len(batch.num_atoms)
    data = {
        "positions": torch.tensor(batch.positions),
        "node_attrs": torch.tensor(one_hot),
        "edge_index": torch.tensor(np.concatenate(edges, axis=1), dtype=torch.int64),
        "shifts": torch.tensor(np.concatenate(shifts)),
        "unit_shifts": torch.tensor(np.concatenate(unit_shifts), dtype=torch.float64),
        "cell": torch.tensor(np.concatenate(cells)),
        "batch": torch.tensor(np.repeat(np.arange(graphs), batch.num_atoms)),
        "ptr": torch.tensor(np.concatenate([[0], np.cumsum(batch.num_atoms)])),
        "head": torch.full((graphs,), head, dtype=torch.int64),
    }
    result = module(data, compute_force=True, compute_stress=True)
    keys = ("energy", "node_energy", "forces", "stress", "node_feats")
    outputs = {key: result[key].detach().numpy().astype(np.float64) for key in keys}
    outputs["stress"][~batch.pbc.all(axis=1)] = np.nan
    return outputs
