"""Make tests/fixtures/escn/*.npz: grids of e3nn and small random eSCN models of fairchem, and what they compute.

Run in an environment with fairchem-core 1.10 (torch, e3nn):  python scripts/make_escn_fixtures.py [OUTPUT_DIR]
The tests read the files without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from e3nn.o3 import FromS2Grid, ToS2Grid

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


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/escn")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "grids.npz", **grids())
