"""The symmetric contraction of mace-torch, eager, in its full basis."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

warnings.filterwarnings("ignore")

import mace  # noqa: E402, F401  before e3nn
import torch  # noqa: E402
from e3nn import o3  # noqa: E402
from mace.modules.symmetric_contraction import SymmetricContraction  # noqa: E402
from serve import serve  # noqa: E402


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    channels = case["channels"]
    module = SymmetricContraction(
        irreps_in=o3.Irreps(f"{channels}x0e+{channels}x1o+{channels}x2e+{channels}x3o"),
        irreps_out=o3.Irreps("+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(case["lmax_out"] + 1))),
        correlation=3,
        num_elements=case["species"],
        use_reduced_cg=False,
    )
    x = torch.randn(case["atoms"], channels, 16)
    one_hot = torch.eye(case["species"])[torch.randint(case["species"], (case["atoms"],))]
    facts = {
        "library": f"mace-torch {version('mace-torch')} (torch {torch.__version__})",
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    if case["task"] == "forward":

        def forward() -> None:
            with torch.no_grad():
                module(x, one_hot)

        return forward, facts

    x.requires_grad_(True)

    def backward() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x, one_hot).sum().backward()

    return backward, facts


if __name__ == "__main__":
    serve(build)
