"""Make tests/fixtures/mace/*.npz: small random mace-torch models and what they compute, in float64.

Run in an environment with the extra `interop`:  python scripts/make_mace_fixtures.py [OUTPUT_DIR]
The tests read the files without torch. The first twelve rows of MODELS cover every pair of values of blocks,
hidden degree, correlation, transform, ZBL, model class and number of heads; the others add one case each.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from equijax.structure import Structure
from equijax.weights.mace_torch import export_mace_torch
from equijax.weights.mace_torch_export import ReferenceBatch

BLOCKS = {
    "RA": "RealAgnosticInteractionBlock",
    "RAR": "RealAgnosticResidualInteractionBlock",
    "D": "RealAgnosticDensityInteractionBlock",
    "DR": "RealAgnosticDensityResidualInteractionBlock",
}


@dataclasses.dataclass(frozen=True)
class FixtureModel:
    """One mace-torch model; the names are mace-torch's."""

    name: str
    first: str
    other: str
    lmax: int  # of the hidden features
    correlation: int
    distance_transform: str = "None"
    pair_repulsion: bool = False
    scale_shift: bool = True
    heads: int = 1
    channels: int = 4
    num_interactions: int = 2
    max_ell: int = 3
    r_max: float = 5.0
    num_bessel: int = 6
    polynomial_power: int = 5
    radial_mlp: tuple[int, ...] = (16, 16, 16)
    readout_mlp: int = 8
    atomic_numbers: tuple[int, ...] = (1, 6, 8, 14)
    dtype: str = "float64"


MODELS = (
    FixtureModel("ra_rar_l0_nu1", "RA", "RAR", 0, 1, scale_shift=False, heads=2),
    FixtureModel("ra_rar_l1_nu2_soft_zbl", "RA", "RAR", 1, 2, "Soft", True, heads=2),
    FixtureModel("ra_rar_l2_nu3_agnesi_zbl", "RA", "RAR", 2, 3, "Agnesi", True, scale_shift=False),
    FixtureModel("rar_rar_l0_nu2_agnesi", "RAR", "RAR", 0, 2, "Agnesi", heads=2),
    FixtureModel("rar_rar_l1_nu3_zbl", "RAR", "RAR", 1, 3, pair_repulsion=True),
    FixtureModel("rar_rar_l2_nu1_soft", "RAR", "RAR", 2, 1, "Soft", scale_shift=False),
    FixtureModel("d_dr_l0_nu3_soft_zbl", "D", "DR", 0, 3, "Soft", True, scale_shift=False),
    FixtureModel("d_dr_l1_nu1_agnesi", "D", "DR", 1, 1, "Agnesi", heads=2),
    FixtureModel("d_dr_l2_nu2", "D", "DR", 2, 2),
    FixtureModel("dr_dr_l0_nu1_zbl", "DR", "DR", 0, 1, pair_repulsion=True, scale_shift=False),
    FixtureModel("dr_dr_l1_nu2_agnesi_zbl", "DR", "DR", 1, 2, "Agnesi", True, scale_shift=False, heads=2),
    FixtureModel("dr_dr_l2_nu3_soft", "DR", "DR", 2, 3, "Soft", heads=2),
    FixtureModel("published_shape", "RA", "RAR", 1, 3, num_bessel=8, radial_mlp=(64, 64, 64), readout_mlp=16),
    FixtureModel("one_layer", "RAR", "RAR", 1, 3, num_interactions=1),
    FixtureModel("three_layers_lmax2", "RA", "RAR", 1, 2, num_interactions=3, max_ell=2, r_max=4.5,
                 num_bessel=5, polynomial_power=6, radial_mlp=(16, 12), atomic_numbers=(14, 1, 8, 6)),
    FixtureModel("float32", "DR", "DR", 1, 3, "Agnesi", True, dtype="float32"),
)  # fmt: skip


def build(spec: FixtureModel, seed: int) -> Any:
    """The torch module with random weights."""
    import mace  # noqa: F401  before e3nn
    import torch
    from e3nn import o3
    from mace import modules

    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, spec.dtype))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    hidden = "+".join(f"{spec.channels}x{l}{'eo'[l % 2]}" for l in range(spec.lmax + 1))
    energies = rng.uniform(-30.0, -1.0, (spec.heads, len(spec.atomic_numbers)))
    arguments: dict[str, Any] = {
        "r_max": spec.r_max,
        "num_bessel": spec.num_bessel,
        "num_polynomial_cutoff": spec.polynomial_power,
        "max_ell": spec.max_ell,
        "interaction_cls_first": modules.interaction_classes[BLOCKS[spec.first]],
        "interaction_cls": modules.interaction_classes[BLOCKS[spec.other]],
        "num_interactions": spec.num_interactions,
        "num_elements": len(spec.atomic_numbers),
        "hidden_irreps": o3.Irreps(hidden),
        "MLP_irreps": o3.Irreps(f"{spec.readout_mlp}x0e"),
        "gate": torch.nn.functional.silu,
        "atomic_energies": energies if spec.heads > 1 else energies[0],
        "avg_num_neighbors": 11.3,
        "atomic_numbers": list(spec.atomic_numbers),
        "correlation": spec.correlation,
        "radial_MLP": list(spec.radial_mlp),
        "distance_transform": spec.distance_transform,
        "pair_repulsion": spec.pair_repulsion,
        "heads": None if spec.heads == 1 else [f"head_{h}" for h in range(spec.heads)],
        "use_reduced_cg": False,
    }
    if not spec.scale_shift:
        return modules.MACE(**arguments)
    scale, shift = rng.uniform(0.5, 2.0, spec.heads), rng.uniform(-0.3, 0.3, spec.heads)
    arguments["atomic_inter_scale"] = scale if spec.heads > 1 else float(scale[0])
    arguments["atomic_inter_shift"] = shift if spec.heads > 1 else float(shift[0])
    return modules.ScaleShiftMACE(**arguments)


def structures() -> dict[str, list[Structure]]:
    """A molecule, a triclinic crystal smaller than the cutoff, and both in one batch; some pairs feel ZBL."""
    from ase.build import molecule

    rng = np.random.default_rng(7)
    ethanol = molecule("CH3CH2OH")
    positions = 0.93 * ethanol.positions + rng.normal(scale=0.04, size=(9, 3))
    ethanol = Structure(ethanol.numbers.astype(np.int64), positions)
    cell = np.array([[0.1, 2.1, 2.0], [2.2, 0.0, 1.9], [2.0, 2.1, -0.2]])
    fractional = np.array([[0.02, -0.01, 0.03], [0.24, 0.27, 0.25]])
    crystal = Structure(np.array([14, 6]), fractional @ cell, cell, (True, True, True))
    other = dataclasses.replace(ethanol, positions=positions + rng.normal(scale=0.05, size=(9, 3)))
    return {"molecule": [ethanol], "crystal": [crystal], "batch": [other, crystal]}


def references() -> dict[str, ReferenceBatch]:
    """The inputs of every fixture."""
    return {name: ReferenceBatch.from_structures(batch) for name, batch in structures().items()}


def main(output: Path) -> None:
    """Write every fixture."""
    output.mkdir(parents=True, exist_ok=True)
    for seed, spec in enumerate(MODELS):
        export = export_mace_torch(build(spec, seed), references())
        path = output / f"{spec.name}.npz"
        export.save(path)
        energy = export.references["crystal"].outputs[export.config["heads"][0]]["energy"][0]
        print(f"{path.name:36s} {path.stat().st_size / 1e3:7.1f} kB  crystal {energy:.12f} eV", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("tests/fixtures/mace"))
