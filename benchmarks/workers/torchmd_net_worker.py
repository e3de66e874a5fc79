"""torchmd-net with its Warp kernels; the neighbour search of its model, on every call, is part of the time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from serve import serve  # noqa: E402
from torchmdnet.models.model import create_model  # noqa: E402

NUMBERS = np.array([1, 6, 7, 8])


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    system = dict(np.load(case["system"]))
    box = torch.tensor(system["cell"][0], dtype=dtype) if system["periodic"][0] else None
    model = create_model(
        {
            "model": "tensornet",
            "embedding_dimension": case["channels"],
            "num_layers": case["num_layers"],
            "num_rbf": 32,
            "rbf_type": "expnorm",
            "trainable_rbf": False,
            "activation": "silu",
            "cutoff_lower": 0.0,
            "cutoff_upper": 5.0,
            "max_z": 128,
            "max_num_neighbors": 80,
            "equivariance_invariance_group": "O(3)",
            "precision": 32 if dtype == torch.float32 else 64,
            "derivative": True,
            "output_model": "Scalar",
            "reduce_op": "add",
            "prior_model": None,
            "atom_filter": -1,
            "box_vecs": None if box is None else box.tolist(),
            "static_shapes": False,
        }
    )
    z = torch.tensor(NUMBERS[system["species"]], dtype=torch.long)
    batch = torch.tensor(np.repeat(np.arange(len(system["num_atoms"])), system["num_atoms"]), dtype=torch.long)
    positions = system["positions"].astype(case["dtype"])
    facts = {"parameters": sum(p.numel() for p in model.parameters())}
    if case["task"] == "forces":
        for parameter in model.parameters():
            parameter.requires_grad_(False)

        def energy_and_forces() -> None:
            found, found_forces = model(z, torch.tensor(positions), batch, box=box)
            found.detach().numpy(), found_forces.detach().numpy()

        return energy_and_forces, facts

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    energy = torch.tensor(system["energy"] - np.mean(system["energy"]), dtype=dtype)[:, None]
    forces, num_atoms = torch.tensor(system["forces"], dtype=dtype), torch.bincount(batch).to(dtype)[:, None]

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        found, found_forces = model(z, torch.tensor(positions), batch)
        loss = (((found - energy) / num_atoms) ** 2).mean() + 100 * ((found_forces - forces) ** 2).mean()
        loss.backward()
        optimizer.step()
        loss.item()

    return train, facts


if __name__ == "__main__":
    serve(build)
