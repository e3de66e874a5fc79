"""eSCN of fairchem 1.x -> equijax Potential: the config as ours, and a total, checked reordering of arrays.

Nothing is rescaled, and every key is consumed once: as a parameter, or as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.models.contract import ModelStatistics
from equijax.models.escn_config import DirectForces, ESCNConfig, SO2LinearMixing
from equijax.nn.radial_basis import Gaussian
from equijax.ops.sphere_samples import sampled_harmonics, sphere_samples
from equijax.potential.potential import Potential
from equijax.weights.fairchem_checkpoint import (
    FairchemExport,
    FairchemState,
    kept_elements,
    split_model,
    stacked,
    target_units,
    with_defaults,
)

# What fairchem-core 1.10 takes for options that a config leaves out.
DEFAULTS: dict[str, Any] = {
    "regress_forces": True, "max_neighbors": 40, "cutoff": 8.0, "max_num_elements": 90, "num_layers": 8,
    "lmax_list": [6], "mmax_list": [2], "sphere_channels": 128, "hidden_channels": 256, "edge_channels": 128,
    "num_sphere_samples": 128, "distance_function": "gaussian", "basis_width_scalar": 1.0,
    "distance_resolution": 0.02, "resolution": None,
}  # fmt: skip
# How graphs are made and what is printed.
IRRELEVANT = ("name", "model", "use_pbc", "use_pbc_single", "otf_graph", "show_timing_info", "activation_checkpoint")
BACKBONES = ("escn", "escn_backbone")
ENERGY_HEADS, FORCE_HEADS = ("escn_energy_head",), ("escn_force_head",)


def to_potential(export: FairchemExport, elements: Sequence[int] | None = None) -> tuple[Potential, dict[str, str]]:
    """The Potential, and the parameters that reach no result: none.

    `elements`: the atomic numbers to keep, by default all that the embedding has a row for, trained or not.
    Raises EquijaxError for options that equijax's eSCN does not have, and when a key or shape is not expected.
    """
    backbone, prefixes = split_model(export.model, BACKBONES, ENERGY_HEADS, FORCE_HEADS)
    options = with_defaults(backbone, DEFAULTS, IRRELEVANT)
    units = target_units(export.normalizers)
    refuse = (
        (len(options["lmax_list"]) != 1, f"several resolutions (lmax_list {options['lmax_list']})"),
        (options["distance_function"] != "gaussian", f"the radial basis {options['distance_function']}"),
        (not options["regress_forces"], "no forces (regress_forces)"),
        (not np.isclose(units.energy_rmsd, units.force_rmsd, rtol=1e-6), "different scales of energies and forces"),
    )
    for condition, feature in refuse:
        if condition:
            raise EquijaxError(f"this model uses {feature}, which equijax's eSCN does not have")
    kept = kept_elements(elements, options["max_num_elements"])
    config, state = _config(options, units.energy_mean), FairchemState(export.state)
    params = _Reader(state, config, np.array(kept), options["max_num_elements"], prefixes).params()
    _compare_constants(state, config, prefixes["backbone"])
    energies = np.zeros(options["max_num_elements"])
    if export.element_energies is not None:
        energies[: len(export.element_energies)] = export.element_energies.reshape(-1)[: len(energies)]
    state.finish()
    potential = Potential(
        model_config=config,
        # Sums over neighbours are plain: their mean number is not used.
        statistics=ModelStatistics(tuple(kept), avg_num_neighbors=1.0, scale=units.force_rmsd),
        atomic_energies={z: float(energies[z]) for z in kept},
        params=params,
        dtype="float32",
        metadata={"origin": "fairchem", "model_class": "eSCN"},
    )
    potential.check_parameters()
    return potential, state.unused


def _config(options: Mapping[str, Any], shift: float) -> ESCNConfig:
    return ESCNConfig.model_validate(
        {
            "cutoff": float(options["cutoff"]),
            "lmax": options["lmax_list"][0],
            "num_layers": options["num_layers"],
            "channels": options["sphere_channels"],
            "edge_channels": options["edge_channels"],
            "radial_basis": {
                "name": "gaussian",
                "count": int(options["cutoff"] / options["distance_resolution"]),
                "width": float(options["basis_width_scalar"]),
            },
            "polynomial_cutoff_power": None,
            "max_neighbors": options["max_neighbors"],
            "edge_product": {
                "name": "so2_linear",
                "mmax": options["mmax_list"][0],
                "hidden_channels": options["hidden_channels"],
                "parity": "any",
            },
            "activation": {"name": "grid", "resolution": options["resolution"]},
            "norm": None,
            "edge_degree_embedding": False,
            "message_sum": "plain",
            "forces": {"name": "direct", "sphere_samples": options["num_sphere_samples"]},
            "isolated_atoms": "learned",
            "structure_shift": shift,
        }
    )


class _Reader:
    """Takes the parameters of one model out of a state dict; torch keeps kernels as [out, in]."""

    def __init__(
        self, state: FairchemState, config: ESCNConfig, kept: np.ndarray, rows: int, prefixes: dict[str, str]
    ) -> None:
        assert isinstance(config.edge_product, SO2LinearMixing)
        assert isinstance(config.radial_basis, Gaussian)
        self.state, self.config, self.kept, self.rows, self.prefixes = state, config, kept, rows, prefixes
        self.mixing, self.gaussians = config.edge_product, config.radial_basis.count

    def params(self) -> dict[str, Any]:
        config, backbone = self.config, self.prefixes["backbone"]
        return {
            "embedding": self._table(f"{backbone}sphere_embedding.weight", config.channels),
            "layers": stacked([self._layer(f"{backbone}layer_blocks.{i}") for i in range(config.num_layers)]),
            "energy": self._readout(self.prefixes["energy"]),
            "force": self._readout(self.prefixes["forces"]),
        }

    def _table(self, key: str, width: int) -> np.ndarray:
        return self.state.take(key, self.rows, width)[self.kept]

    def _kernel(self, key: str, inputs: int, outputs: int) -> np.ndarray:
        return self.state.take(f"{key}.weight", outputs, inputs).T

    def _dense(self, key: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, np.ndarray]:
        params = {"kernel": self._kernel(key, inputs, outputs)}
        return params | ({"bias": self.state.take(f"{key}.bias", outputs)} if bias else {})

    def _layer(self, prefix: str) -> dict[str, Any]:
        channels, width = self.config.channels, self.config.edge_channels
        message, edge = f"{prefix}.message_block", f"{prefix}.message_block.edge_block"
        widths = (2 * channels, channels, channels)
        return {
            "message": {
                "edge_scalars": {
                    "layer_0": self._dense(f"{edge}.fc1_dist", self.gaussians, width),
                    "layer_1": self._dense(f"{edge}.fc1_edge_attr", width, width),
                    "source": self._table(f"{edge}.source_embedding.weight", width),
                    "target": self._table(f"{edge}.target_embedding.weight", width),
                },
                "source": self._so2_block(f"{message}.so2_block_source"),
                "target": self._so2_block(f"{message}.so2_block_target"),
            },
            "update": {
                f"layer_{k}": self._dense(f"{prefix}.fc{k + 1}_sphere", inputs, channels, bias=False)
                for k, inputs in enumerate(widths)
            },
        }

    def _so2_block(self, prefix: str) -> dict[str, Any]:
        config, hidden, width = self.config, self.mixing.hidden_channels, self.config.edge_channels
        size = (config.lmax + 1) * config.channels
        params: dict[str, Any] = {
            "gate_0": self._dense(f"{prefix}.fc1_dist0", width, hidden),
            "in_0": self._kernel(f"{prefix}.fc1_m0", size, hidden)[None],
            "out_0": self._kernel(f"{prefix}.fc2_m0", hidden, size)[None],
        }
        for m in range(1, self.mixing.mmax + 1):
            size, conv = (config.lmax + 1 - m) * config.channels, f"{prefix}.so2_conv.{m - 1}"
            params[f"gate_{m}"] = self._dense(f"{conv}.fc1_dist", width, 2 * hidden)
            params[f"in_{m}"] = np.stack([self._kernel(f"{conv}.fc1_{part}", size, hidden) for part in "ri"])
            params[f"out_{m}"] = np.stack([self._kernel(f"{conv}.fc2_{part}", hidden, size) for part in "ri"])
        return params

    def _readout(self, prefix: str) -> dict[str, Any]:
        channels = self.config.channels
        return {
            f"layer_{k}": self._dense(f"{prefix}.fc{k + 1}", channels, outputs, bias=k < 2)
            for k, outputs in enumerate((channels, channels, 1))
        }


def _compare_constants(state: FairchemState, config: ESCNConfig, backbone: str) -> None:
    assert isinstance(config.forces, DirectForces)
    assert isinstance(config.radial_basis, Gaussian)
    points = sphere_samples(config.forces.sphere_samples)
    state.constant(f"{backbone}sphere_points", points)
    state.constant(f"{backbone}sphharm_weights.0", sampled_harmonics(points, config.lmax))
    state.constant(f"{backbone}distance_expansion.offset", np.linspace(0, config.cutoff, config.radial_basis.count))
