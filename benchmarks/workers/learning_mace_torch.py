"""Train mace-torch's ScaleShiftMACE with its data pipeline, loss and EMA, as its own command line does."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import mace  # noqa: E402, F401  before e3nn
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase.io import read  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data, modules  # noqa: E402
from mace.tools import AtomicNumberTable, torch_geometric  # noqa: E402
from torch_ema import ExponentialMovingAverage  # noqa: E402


def loader(path: str, table: AtomicNumberTable, batch: int, shuffle: bool) -> torch_geometric.dataloader.DataLoader:
    graphs = []
    for atoms in read(path, ":"):
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        config = data.Configuration(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            properties={"energy": energy, "forces": forces},
            property_weights={"energy": 1.0, "forces": 1.0},
            cell=np.zeros((3, 3)),
            pbc=(False, False, False),
        )
        graphs.append(data.AtomicData.from_config(config, z_table=table, cutoff=5.0))
    return torch_geometric.dataloader.DataLoader(graphs, batch_size=batch, shuffle=shuffle, drop_last=False)


def groups(model: torch.nn.Module, learning_rate: float) -> list[dict]:
    """mace-torch's: weight decay on interaction linears and products only."""
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        is_linear = name.startswith("interactions") and "linear.weight" in name
        (decay if is_linear or name.startswith("products") else rest).append(parameter)
    return [
        {"params": decay, "weight_decay": 5e-7, "lr": learning_rate},
        {"params": rest, "weight_decay": 0.0, "lr": learning_rate},
    ]


def main() -> None:
    begin = float(sys.argv[3])  # time.time() when the process was started
    setup = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(setup["seed"])
    numbers = sorted(setup["numbers"].values())
    table = AtomicNumberTable(numbers)
    energies = {setup["numbers"][symbol]: value for symbol, value in setup["atomic_energies"].items()}
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(setup["hidden_irreps"]),
        MLP_irreps=o3.Irreps("16x0e"),
        # Zero here: float32 cannot hold E0 sums next to meV, so labels are referenced below, as equijax does.
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=setup["statistics"]["avg_num_neighbors"],
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=setup["statistics"]["scale"],
        atomic_inter_shift=setup["statistics"]["shift"],
        use_reduced_cg=False,
    )
    train = loader(setup["train_referenced"], table, setup["batch"], True)
    valid = loader(setup["valid_referenced"], table, 10, False)
    assert all(z in energies for z in numbers)
    loss_function = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=setup["forces_weight"])
    optimizer = torch.optim.Adam(groups(model, setup["learning_rate"]), amsgrad=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=setup["decay"])
    average = ExponentialMovingAverage(model.parameters(), decay=0.99)
    for epoch in range(setup["epochs"]):
        for batch in train:
            optimizer.zero_grad(set_to_none=True)
            out = model(batch.to_dict(), training=True, compute_force=True)
            loss_function(pred=out, ref=batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
            optimizer.step()
            average.update()
        schedule.step()
        forces, energy = [], []
        with average.average_parameters():
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for batch in valid:
                out = model(batch.to_dict(), training=False, compute_force=True)
                forces.append((out["forces"] - batch.forces).detach().numpy().ravel())
                energy.append(((out["energy"] - batch.energy) / (batch.ptr[1:] - batch.ptr[:-1])).detach().numpy())
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        record = {
            "epoch": epoch + 1,
            "cpu_s": time.process_time(),
            "wall_s": time.time() - begin,
            "forces_rmse": float(np.sqrt(np.mean(np.concatenate(forces) ** 2))),
            "energy_rmse_per_atom": float(np.sqrt(np.mean(np.concatenate(energy) ** 2))),
        }
        with Path(sys.argv[2]).open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
