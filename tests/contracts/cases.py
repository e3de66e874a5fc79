"""What the contract suite runs: a small config for every row of `MODELS`, the tolerances, and the shapes.

A new architecture adds its row here and is then judged by every file of this folder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from equijax.graph.padding import Capacity
from equijax.models import EquiformerV2Config, ESCNConfig, MACEConfig, ModelStatistics, TDNConfig, TensorNetConfig
from equijax.nn.graph_attention import Attention
from equijax.nn.layer_norm import LayerNormSH
from equijax.nn.radial_basis import Bessel, Gaussian
from equijax.nn.separable_activation import ExactGrid
from equijax.ops import CP

ELEMENTS = (1, 6, 8)
ATOMIC_ENERGIES = {1: -13.587222780835477, 6: -1029.4889999855063, 8: -2041.9816003861047}
CUTOFF = 3.5
# Few neighbours on average, so that messages, and features with l > 0, are of order one.
STATISTICS = ModelStatistics(atomic_numbers=ELEMENTS, avg_num_neighbors=1.0, scale=1.3, shift=-0.4)


@dataclasses.dataclass(frozen=True)
class Case:
    """A config with few channels, the irreps of its `node_features` in e3nn's notation, and the standard deviation
    of its random weights, by which features are made to be of order one."""

    config: Any
    feature_irreps: str
    weight_scale: float = 1.0


CASES = {
    "mace": Case(
        MACEConfig(cutoff=CUTOFF, hidden_irreps="4x0e+4x1o", lmax=2, num_bessel=4, radial_mlp=(8, 8), readout_mlp=4),
        "4x0e+4x1o+4x0e",
    ),
    "equiformer_v2": Case(
        EquiformerV2Config(
            cutoff=CUTOFF,
            channels=4,
            lmax=2,
            num_layers=2,
            attention=Attention(heads=2, hidden_channels=4, alpha_channels=4, value_channels=2),
            feed_forward_channels=4,
            edge_channels=4,
            radial_basis=Bessel(count=4),
        ),
        "4x0e+4x1o+4x2e+4x0e",
    ),
    "tdn": Case(
        TDNConfig(cutoff=CUTOFF, channels=4, num_layers=2, num_heads=2, num_gaussians=7, radial_mlp=(8,)),
        "4x0e+4x1o+4x2e+4x0e",
        weight_scale=0.65,
    ),
    "escn": Case(
        ESCNConfig(
            cutoff=CUTOFF,
            lmax=2,
            channels=4,
            edge_channels=4,
            radial_basis=Bessel(count=4),
            edge_product={"name": "so2_linear", "mmax": 1, "hidden_channels": 6},
        ),
        "4x0e+4x1o+4x2e+4x0e",
        weight_scale=0.6,
    ),
    "tensornet": Case(
        TensorNetConfig(cutoff=CUTOFF, channels=12, num_layers=2, num_radial=6),
        "12x0e+12x1o+12x2e+" * 2 + "12x0e+12x1o+12x2e",
        weight_scale=0.5,
    ),
}

# Slow: everything that a row can do at once. Run by `-m slow`.
WIDE_CASES = {
    "mace": Case(
        MACEConfig(
            cutoff=CUTOFF,
            hidden_irreps="4x0e+4x1o+4x2e",
            lmax=3,
            num_bessel=6,
            first_interaction="density",
            interaction="density_residual",
            distance_transform="agnesi",
            zbl=True,
            radial_mlp=(8, 8),
        ),
        "4x0e+4x1o+4x2e+4x0e",
        weight_scale=1.05,
    ),
    "equiformer_v2": Case(
        EquiformerV2Config(
            cutoff=CUTOFF,
            channels=4,
            lmax=3,
            mmax=1,
            num_layers=3,
            attention=Attention(
                heads=2,
                hidden_channels=3,
                alpha_channels=4,
                value_channels=2,
                renormalize=False,
                activation=ExactGrid(),
            ),
            feed_forward="gate",
            feed_forward_channels=4,
            norm=LayerNormSH(epsilon=0.1),
            edge_channels=4,
            radial_basis=Gaussian(count=6),
        ),
        "4x0e+4x1o+4x2e+4x3o+4x0e",
        weight_scale=0.55,
    ),
    "tdn": Case(
        TDNConfig(
            cutoff=CUTOFF,
            channels=6,
            num_layers=3,
            num_heads=2,
            num_gaussians=6,
            radial_mlp=(8,),
            polynomial_cutoff_power=3,
            norm_epsilon=0.1,
            edge_product=CP(rank="exact"),
        ),
        "6x0e+6x1o+6x2e+6x0e+6x1o+6x2e+6x0e",
        weight_scale=0.7,
    ),
    "escn": Case(
        ESCNConfig(
            cutoff=CUTOFF,
            lmax=3,
            num_layers=3,
            channels=4,
            edge_channels=4,
            radial_basis=Bessel(count=4),
            edge_product={"name": "so2_linear", "mmax": 2, "hidden_channels": 6},
            activation={"name": "exact_grid"},
        ),
        "4x0e+4x1o+4x2e+4x3o+4x0e",
        weight_scale=0.5,
    ),
    "tensornet": Case(
        TensorNetConfig(
            cutoff=CUTOFF, channels=8, num_layers=1, num_radial=6, total_charge=1.0, radial_basis="parameters"
        ),
        "8x0e+8x1o+8x2e+8x0e+8x1o+8x2e",
        weight_scale=0.6,
    ),
}

# Every array of a suite run has one of these shapes, so that programs are compiled once.
BASE = Capacity(nodes=24, neighbors=32, graphs=6)
TIGHT = Capacity(nodes=8, neighbors=8, graphs=2)


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest allowed deviations, relative to the largest element of the array compared."""

    symmetry: float
    """Rotation, inversion, translation, permutation, extensivity, wrapped positions, other cells."""
    batch: float
    """The same structure in another batch or with other padding."""
    conservation: float
    """Net force and torque over the sum of the absolute forces and torques."""
    many_edges: float
    """A large supercell against its unit cell."""
    at_cutoff: float
    """Force in eV/Å on a neighbour at cutoff (1 - 1e-6)."""
    eager: float
    """jit against op by op, blocked against unblocked sums."""


TOLERANCES = {
    "float64": Tolerance(
        symmetry=1e-10, batch=1e-11, conservation=1e-12, many_edges=1e-10, at_cutoff=1e-9, eager=1e-12
    ),
    "float32": Tolerance(symmetry=1e-4, batch=1e-5, conservation=1e-5, many_edges=1e-4, at_cutoff=1e-6, eager=1e-5),
}

# Central differences with four points in float64.
FINITE_DIFFERENCE_FORCES = 1e-6
FINITE_DIFFERENCE_STRESS = 1e-5
FINITE_DIFFERENCE_HESSIAN = 1e-6
HESSIAN_SYMMETRY = 1e-10
