"""mace-torch: MD steps of ASE with its calculator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")

import ase.io  # noqa: E402
import mace  # noqa: E402, F401  before e3nn
import torch  # noqa: E402
from ase import units  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import modules  # noqa: E402
from mace.calculators import MACECalculator  # noqa: E402
from serve import serve  # noqa: E402


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    elements = case["elements"]
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(case["hidden_irreps"]),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=case["edges"] / case["atoms"],
        atomic_numbers=elements,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=case["scale"],
        atomic_inter_shift=0.0,
        use_reduced_cg=False,
    )
    facts = {"parameters": sum(p.numel() for p in model.parameters())}
    atoms = ase.io.read(case["structure"])
    atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float32")
    integrator = VelocityVerlet(atoms, case["timestep_fs"] * units.fs)
    return lambda: integrator.run(case["steps"]), facts


if __name__ == "__main__":
    serve(build)
