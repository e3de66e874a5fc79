"""Make tests/fixtures/escn/*.npz: grids of e3nn and small random eSCN models of fairchem, and what they compute.

Run in an environment with fairchem-core 1.10 (torch, e3nn):  python scripts/make_escn_fixtures.py [OUTPUT_DIR]
The tests read the files without torch.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from e3nn.o3 import FromS2Grid, ToS2Grid
from torch_geometric.data import Batch, Data
from torch_geometric.utils import scatter, segment

# fairchem imports torch_scatter, a compiled package; eSCN without periodic boundaries needs its two segment sums only.
torch_scatter = types.ModuleType("torch_scatter")
torch_scatter.scatter = scatter
torch_scatter.segment_csr = lambda values, pointers: segment(values, pointers)
torch_scatter.segment_coo = lambda values, index, dim_size: scatter(values, index, dim_size=dim_size, reduce="sum")
sys.modules["torch_scatter"] = torch_scatter

from fairchem.core.models.escn.escn import eSCN  # noqa: E402

GRIDS = ((2, 6, 5, "integral"), (3, 8, 9, "component"), (6, 18, 18, "component"))


def grids() -> dict[str, np.ndarray]:
    """to_grid and from_grid as [β α, (L+1)²], keyed by degree, latitudes, longitudes and normalization."""
    arrays = {}
    for lmax, latitudes, longitudes, normalization in GRIDS:
        shape = (latitudes, longitudes)
        to_grid = ToS2Grid(lmax, shape, normalization=normalization, dtype=torch.float64)
        back = FromS2Grid(shape, lmax, normalization=normalization, dtype=torch.float64)
        for key, grid in (("to", to_grid), ("from", back)):
            matrix = torch.einsum("mbi,am->bai", grid.shb, grid.sha).reshape(latitudes * longitudes, -1)
            arrays[f"{key} {lmax} {latitudes} {longitudes} {normalization}"] = matrix.numpy().astype(np.float32)
    return arrays


# Degree, order and grid resolution of the models; the first has the published default grid.
MODELS: dict[str, tuple[int, int, int | None]] = {"l3_m2": (3, 2, None), "l2_m2": (2, 2, 14)}
MAX_ELEMENTS = 9
CUTOFF = 6.0


def molecules() -> Batch:
    """Two molecules of random atoms, with all pairs as edges, sender and receiver."""
    rng = np.random.default_rng(0)
    data = []
    for numbers in ([8, 1, 1, 6, 7], [6, 8, 1]):
        positions = torch.tensor(1.3 * rng.normal(size=(len(numbers), 3)))
        assert torch.pdist(positions).max() < CUTOFF
        count = len(numbers)
        edges = torch.tensor([(j, i) for i in range(count) for j in range(count) if i != j]).T
        data.append(Data(pos=positions, atomic_numbers=torch.tensor(numbers), natoms=count, edge_index=edges))
    return Batch.from_data_list(data)


def small_model(lmax: int, mmax: int, resolution: int | None) -> dict[str, np.ndarray]:
    """Weights, with matrices tripled so that l > 0 is of order one, edges with their rotations, and results."""
    torch.manual_seed(lmax)
    model = eSCN(
        use_pbc=False,
        otf_graph=False,
        cutoff=CUTOFF,
        max_num_elements=MAX_ELEMENTS,
        num_layers=3,
        lmax_list=[lmax],
        mmax_list=[mmax],
        sphere_channels=6,
        hidden_channels=8,
        edge_channels=7,
        basis_width_scalar=2.0,
        distance_resolution=0.2,
        resolution=resolution,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(3.0)
    # Weights of float32 precision, and everything made of them in float64.
    torch.set_default_dtype(torch.float64)
    weights = {name: value.clone() for name, value in model.state_dict().items() if "SO3_grid" not in name}
    model = model.double()
    batch = molecules()
    found: dict[str, Any] = {}

    # What the model makes on its way: the graph, the random rotations, and the features after every layer.
    generate_graph, rotations = model.generate_graph, model._init_edge_rot_mat
    model.generate_graph = lambda data: found.setdefault("graph", generate_graph(data))
    model._init_edge_rot_mat = lambda *arguments: found.setdefault("rotations", rotations(*arguments))
    updates: list[torch.Tensor] = []
    for layer in model.layer_blocks:
        layer.register_forward_hook(lambda _module, _inputs, output: updates.append(output.embedding.clone()))
    with torch.no_grad():
        results = model(batch)

    torch.set_default_dtype(torch.float32)
    arrays = {f"weights {name}": value for name, value in weights.items()}
    graph = found["graph"]
    arrays |= {
        "positions": batch.pos,
        "atomic_numbers": batch.atomic_numbers,
        "batch": batch.batch,
        "edge_index": graph.edge_index,
        "edge_vectors": graph.edge_distance_vec,
        "rotations": found["rotations"],
        # The residual of every layer but the first is added by the model.
        "features": torch.cumsum(torch.stack(updates), dim=0),
        "energy": results["energy"],
        "forces": results["forces"],
    }
    return {name: value.detach().numpy() for name, value in arrays.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/escn")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "grids.npz", **grids())
    for name, options in MODELS.items():
        np.savez_compressed(folder / f"{name}.npz", **small_model(*options))
