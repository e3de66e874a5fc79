"""mace-torch, eager or as TorchScript, with frozen parameters for energy and forces as its ASE calculator has them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")

import mace  # noqa: E402, F401  before e3nn
import torch  # noqa: E402
from e3nn import o3  # noqa: E402
from e3nn.util import jit  # noqa: E402
from mace import modules  # noqa: E402
from serve import serve  # noqa: E402


def read(path: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    system = dict(np.load(path))
    graphs, atoms = len(system["num_atoms"]), len(system["species"])
    cell = np.where(system["periodic"][:, None, None], system["cell"], 100.0 * np.eye(3))
    data = {
        "positions": torch.tensor(system["positions"], dtype=dtype),
        "node_attrs": torch.eye(4, dtype=dtype)[torch.tensor(system["species"], dtype=torch.long)],
        "edge_index": torch.tensor(np.stack([system["senders"], system["receivers"]]), dtype=torch.long),
        "shifts": torch.tensor(system["shift_vectors"], dtype=dtype),
        "unit_shifts": torch.tensor(system["shifts"], dtype=dtype),
        "cell": torch.tensor(cell.reshape(-1, 3), dtype=dtype),
        "batch": torch.tensor(np.repeat(np.arange(graphs), system["num_atoms"]), dtype=torch.long),
        "ptr": torch.tensor(np.concatenate([[0], np.cumsum(system["num_atoms"])]), dtype=torch.long),
        "head": torch.zeros(graphs, dtype=torch.long),
    }
    assert len(data["positions"]) == atoms
    energy = torch.tensor(system["energy"], dtype=dtype)
    return data, energy, torch.tensor(system["forces"], dtype=dtype)


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    torch.set_default_dtype(dtype)
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps(case["hidden_irreps"]),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(4),
        avg_num_neighbors=case["edges"] / case["atoms"],
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        use_reduced_cg=False,
    )
    data, energy, forces = read(case["system"], dtype)
    facts = {"parameters": sum(p.numel() for p in model.parameters())}
    if case["task"] == "forces":
        if case["form"] == "torchscript":
            model = jit.compile(model.eval())
        for parameter in model.parameters():
            parameter.requires_grad_(False)

        def energy_and_forces() -> None:
            out = model(dict(data), training=False)
            out["energy"].detach().numpy(), out["forces"].numpy()

        return energy_and_forces, facts

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    num_atoms = torch.bincount(data["batch"]).to(dtype)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(dict(data), training=True)
        loss = (((out["energy"] - energy) / num_atoms) ** 2).mean() + 100 * ((out["forces"] - forces) ** 2).mean()
        loss.backward()
        optimizer.step()
        loss.item()

    return train, facts


if __name__ == "__main__":
    serve(build)
