"""Make tests/fixtures/torchmd_net/*.npz: small random TensorNets of torchmd-net and what they compute, in float64.

Run in an environment with torchmd-net and this package: python scripts/make_torchmd_net_fixtures.py [OUTPUT_DIR]
The tests read the files without torch. Every group, number of layers 0 to 2 and charge 0 and 1 is there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from equijax.weights.torchmd_net import build, evaluate
from equijax.weights.torchmd_net_checkpoint import FORMAT, FORMAT_VERSION

ATOMREF = (1, 6, 8)


def hyper_parameters(group: str, num_layers: int) -> dict[str, Any]:
    """As in a checkpoint of torchmd-net 3.1, small."""
    return {
        "model": "tensornet",
        "embedding_dimension": 8,
        "num_layers": num_layers,
        "num_rbf": 16,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": 4.5,
        "max_z": 10,
        "max_num_neighbors": 64,
        "precision": 64,
        "equivariance_invariance_group": group,
        "static_shapes": False,
        "prior_model": [{"Atomref": {"max_z": 10}}],
        "prior_args": None,
        "output_model": "Scalar",
        "reduce_op": "sum",
        "derivative": True,
        "atom_filter": -1,
    }


def random_state(parameters: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """torch's own initial weights, larger biases and norms, and energies of a few elements."""
    import torch
    from torchmdnet.models.model import create_model

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    state = {key: value.numpy().copy() for key, value in create_model(parameters).state_dict().items()}
    for key, value in state.items():
        if key.endswith("bias") or "norm" in key:
            state[key] = value + rng.normal(scale=0.3, size=value.shape)
    energies = np.zeros((10, 1))
    energies[list(ATOMREF), 0] = [-13.6, -1029.5, -2042.0]
    return state | {"prior_model.0.atomref.weight": energies, "prior_model.0.initial_atomref": energies,
                    "std": np.array(1.7)}  # fmt: skip


def molecules() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ethanol, larger than the cutoff; and an atom that has only itself."""
    from ase.build import molecule

    ethanol = molecule("CH3CH2OH")
    shaken = ethanol.positions * 1.05 + np.random.default_rng(7).normal(scale=0.05, size=(9, 3))
    return {"ethanol": (ethanol.numbers, shaken), "atom": (np.array([8]), np.zeros((1, 3)))}


def main(output: Path) -> None:
    """Write every fixture."""
    output.mkdir(parents=True, exist_ok=True)
    for seed, (group, num_layers) in enumerate((g, n) for g in ("O(3)", "SO(3)") for n in (0, 1, 2)):
        parameters = hyper_parameters(group, num_layers)
        state = random_state(parameters, seed)
        module = build(parameters, state)
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "hyper_parameters": parameters}
        arrays = {"config": np.array(json.dumps(config)), **{f"state/{k}": v for k, v in state.items()}}
        for charge in (0, 1):
            for name, (numbers, positions) in molecules().items():
                reference = evaluate(module, numbers, positions, float(charge))
                for field, value in dataclasses.asdict(reference).items():
                    arrays[f"reference/{name}_{charge}/{field}"] = np.asarray(value)
        path = output / f"{group.partition('(')[0].lower()}3_{num_layers}.npz"
        np.savez_compressed(path, **arrays)
        print(
            f"{path.name:12s} {path.stat().st_size / 1e3:6.1f} kB  {float(arrays['reference/ethanol_0/energy']):.12f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("tests/fixtures/torchmd_net"))
