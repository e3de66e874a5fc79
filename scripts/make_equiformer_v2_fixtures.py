"""Make tests/fixtures/equiformer_v2/*.npz: small random EquiformerV2 models of fairchem, and what they compute.

Run in an environment with fairchem-core 1.10 (torch, e3nn):  python scripts/make_equiformer_v2_fixtures.py [OUTPUT_DIR]
The tests read the files without torch. Each is an export as `equijax convert fairchem` reads it, with references.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import scatter, segment

# fairchem imports torch_scatter, a compiled package; without periodic boundaries its segment sums are all it needs.
torch_scatter = types.ModuleType("torch_scatter")
torch_scatter.scatter = scatter
torch_scatter.segment_csr = lambda values, pointers: segment(values, pointers)
torch_scatter.segment_coo = lambda values, index, dim_size: scatter(values, index, dim_size=dim_size, reduce="sum")
sys.modules["torch_scatter"] = torch_scatter

from fairchem.core.models.base import HydraModel  # noqa: E402
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone  # noqa: E402, F401

CUTOFF = 6.0
SMALL = {
    "use_pbc": False,
    "otf_graph": False,
    "max_radius": CUTOFF,
    "max_num_elements": 9,
    "num_layers": 2,
    "sphere_channels": 6,
    "attn_hidden_channels": 5,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 3,
    "ffn_hidden_channels": 7,
    "edge_channels": 8,
    "norm_type": "layer_norm_sh",
    "lmax_list": [3],
    "mmax_list": [2],
    "grid_resolution": 18,
    "attn_activation": "silu",
    "ffn_activation": "silu",
    "use_grid_mlp": True,
    "use_sep_s2_act": True,
    "weight_init": "uniform",
}
MODELS: dict[str, dict[str, Any]] = {
    # The published options; then what else the weights of others may have.
    "published": {},
    "gates": {
        "use_gate_act": True, "use_grid_mlp": False, "norm_type": "rms_norm_sh", "use_attn_renorm": False,
        "lmax_list": [2], "mmax_list": [1], "grid_resolution": None, "avg_degree": 4.5, "avg_num_nodes": 3.5,
    },
    "s2": {
        "use_grid_mlp": False, "norm_type": "rms_norm_sh", "lmax_list": [2], "mmax_list": [2], "grid_resolution": 14,
    },
}  # fmt: skip
NORMALIZERS = {"energy": {"mean": -0.75544506, "rmsd": 2.8873173}, "forces": {"mean": 0.0, "rmsd": 2.8873173}}


def alignment(vectors: np.ndarray) -> np.ndarray:
    """A rotation for each vector [E, 3] that takes it to the y axis, the smallest one for y >= 0."""
    rotations = []
    for x, y, z in vectors / np.linalg.norm(vectors, axis=1, keepdims=True):
        sign = -1.0 if y < 0 else 1.0
        s = 1 / (1 + sign * y)
        rotations.append(
            [[1 - x * x * s, -sign * x, -x * z * s], [x, y, z], [-sign * x * z * s, -z, sign * (1 - z * z * s)]]
        )
    return np.array(rotations)


def molecules() -> Batch:
    """Three molecules of random atoms, with all pairs as edges, sender and receiver; the last is a single atom."""
    rng = np.random.default_rng(0)
    data = []
    for numbers in ([8, 1, 1, 6, 7], [6, 8, 1], [7]):
        count = len(numbers)
        positions = torch.tensor(1.3 * rng.normal(size=(count, 3)), dtype=torch.float32)
        pairs = [(j, i) for i in range(count) for j in range(count) if i != j]
        edges = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        data.append(Data(pos=positions, atomic_numbers=torch.tensor(numbers), natoms=count, edge_index=edges))
    return Batch.from_data_list(data)


def small_model(seed: int, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights, with all but norms and embeddings tripled so that l > 0 is of order one, and results per layer."""
    torch.manual_seed(seed)
    backbone = {"model": "equiformer_v2_backbone", **SMALL, **options}
    heads = {
        "energy": {"module": "equiformerV2_scalar_head"},
        "forces": {"module": "equiformerV2_vector_head", "output_name": "forces"},
    }
    model = HydraModel(backbone, heads, otf_graph=False, pass_through_head_outputs=True).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "affine" in name or ".norm_l0." in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
            elif "source_embedding" in name or "target_embedding" in name:
                parameter.mul_(500.0)
            elif "sphere_embedding" not in name and "rad_func" not in name:
                parameter.mul_(3.0)
    batch = molecules()
    core = model.backbone
    core._init_edge_rot_mat = lambda _data, _index, vectors: torch.tensor(
        alignment(vectors.double().numpy()), dtype=torch.float32
    )
    found: dict[str, Any] = {}
    generate_graph = core.generate_graph
    core.generate_graph = lambda *arguments, **keywords: found.setdefault(
        "graph", generate_graph(*arguments, **keywords)
    )
    degrees: list[torch.Tensor] = []
    core.edge_degree_embedding.register_forward_hook(lambda _m, _i, output: degrees.append(output.embedding.clone()))
    layers: list[torch.Tensor] = []
    for block in (*core.blocks, core.norm):
        block.register_forward_hook(lambda _m, _i, output: layers.append(getattr(output, "embedding", output).clone()))
    with torch.no_grad():
        results = model(batch)
    config = {
        "format": "fairchem export",
        "format_version": 1,
        "model": {"name": "hydra", "backbone": backbone, "heads": heads},
        "normalizers": NORMALIZERS,
    }
    arrays = {
        "positions": batch.pos,
        "atomic_numbers": batch.atomic_numbers,
        "batch": batch.batch,
        "edge_index": found["graph"].edge_index,
        "edge_vectors": found["graph"].edge_distance_vec,
        "edge_degree": degrees[0],
        "layers": torch.stack(layers[:-1]),
        "normalized": layers[-1],
        "energy": results["energy"],
        "forces": results["forces"],
    }
    # The constants of the grids of all degrees are megabytes, once per layer; one copy of one of them stays.
    grid = f"backbone.SO3_grid.{core.lmax_list[0]}.{core.mmax_list[0]}."
    state = {
        f"state/module.{key}": value
        for key, value in model.state_dict().items()
        if "SO3_grid" not in key or key.startswith(grid)
    }
    return {
        "config": np.array(json.dumps(config)),
        **{key: value.numpy() for key, value in state.items()},
        **{f"reference/{key}": value.detach().numpy() for key, value in arrays.items()},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/equiformer_v2")
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, options) in enumerate(MODELS.items()):
        np.savez_compressed(folder / f"{name}.npz", **small_model(seed, options))
