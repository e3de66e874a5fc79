"""The torch side of the torchmd-net import: rebuild the model and evaluate it in float64, its Warp kernels off.

The kernels hold float32 constants, which limit "float64" to 1e-8. Needs torchmd-net.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from equijax.weights.torchmd_net_checkpoint import Reference


def is_installed() -> bool:
    """Whether torchmd-net can be imported."""
    return importlib.util.find_spec("torchmdnet") is not None


def build(hyper_parameters: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Any:
    """The torch module in float64, with forces; `state` in the layout of torchmd-net 3.1."""
    import torch
    from torchmdnet.models import tensornet
    from torchmdnet.models.model import create_model

    tensornet.OPT = False
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, f"_{name}"))
    torch.set_num_threads(1)
    module = create_model({**hyper_parameters, "precision": 64, "derivative": True, "static_shapes": False})
    tensors = {key: torch.tensor(np.asarray(value)) for key, value in state.items()}
    tensors.setdefault("representation_model.distance.box", torch.zeros(3, 3))
    module.load_state_dict(tensors)
    return module.double()


def evaluate(module: Any, numbers: np.ndarray, positions: np.ndarray, charge: float) -> Reference:
    """Energy and forces of one molecule."""
    import torch

    z = torch.tensor(numbers, dtype=torch.long)
    q = torch.tensor([charge], dtype=torch.float64)
    energy, forces = module(z, torch.tensor(positions, dtype=torch.float64), torch.zeros_like(z), q=q)
    return Reference(numbers, positions, charge, float(energy.sum()), forces.detach().numpy())


def default_references(
    hyper_parameters: Mapping[str, Any], state: Mapping[str, np.ndarray], elements: tuple[int, ...], charge: float
) -> dict[str, Reference]:
    """A cluster that holds every element, evaluated by torch."""
    rng = np.random.default_rng(0)
    numbers = np.resize(np.array(elements), max(8, len(elements)))
    side = int(np.ceil(len(numbers) ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[: len(numbers)]
    positions = (grid + rng.uniform(-0.15, 0.15, grid.shape)) * 0.36 * float(hyper_parameters["cutoff_upper"])
    return {"elements": evaluate(build(hyper_parameters, state), numbers, positions, charge)}
