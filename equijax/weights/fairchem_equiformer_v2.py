"""EquiformerV2 of fairchem 1.x -> equijax Potential: the config as ours, and a total, checked reordering of arrays.

Nothing is rescaled, and every key is consumed once: as a parameter, as a constant, or as a parameter that reaches no
result (`FairchemState.unused`). Those are many in the heads: the energy is made of the scalars of its network, which
depend on scalars only, and the forces are the degree 1 of an attention that has weights for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.models.contract import ModelStatistics
from equijax.models.equiformer_v2_config import EquiformerV2Config
from equijax.nn.edge_frame import m_primary_rows
from equijax.nn.radial_basis import Gaussian
from equijax.nn.separable_activation import GridMLP, SeparableS2, published_grid
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
    "max_neighbors": 500, "max_radius": 5.0, "max_num_elements": 90, "num_layers": 12, "sphere_channels": 128,
    "attn_hidden_channels": 128, "num_heads": 8, "attn_alpha_channels": 32, "attn_value_channels": 16,
    "ffn_hidden_channels": 512, "norm_type": "rms_norm_sh", "lmax_list": [6], "mmax_list": [2],
    "grid_resolution": None, "edge_channels": 128, "use_atom_edge_embedding": True,
    "share_atom_edge_embedding": False, "use_m_share_rad": False, "distance_function": "gaussian",
    "use_s2_act_attn": False, "use_attn_renorm": True, "use_gate_act": False, "use_grid_mlp": False,
    "use_sep_s2_act": True, "avg_num_nodes": None, "avg_degree": None, "load_energy_lin_ref": False,
    "use_energy_lin_ref": False, "regress_forces": True,
}  # fmt: skip
# How graphs are made, how weights start and train, and what fairchem itself does not read.
IRRELEVANT = (
    "name", "model", "use_pbc", "use_pbc_single", "otf_graph", "num_sphere_samples", "num_distance_basis",
    "attn_activation", "ffn_activation", "alpha_drop", "drop_path_rate", "proj_drop", "weight_init",
    "enforce_max_neighbors_strictly", "activation_checkpoint",
)  # fmt: skip
ENERGY_HEADS = ("equiformerV2_scalar_head", "equiformer_v2_energy_head")
FORCE_HEADS = ("equiformerV2_vector_head", "equiformer_v2_force_head", "equiformerV2_rank1_head")
NORMS = {"layer_norm_sh": "layer_norm_sh", "rms_norm_sh": "rms_norm_sh"}
BACKBONES = ("equiformer_v2", "equiformer_v2_backbone")
AVERAGE_ATOMS, AVERAGE_DEGREE = 77.81317, 23.395238876342773
GAUSSIANS = 600
MISSING_WEIGHTS = "makes results of degrees that no output takes"


def to_potential(export: FairchemExport, elements: Sequence[int] | None = None) -> tuple[Potential, dict[str, str]]:
    """The Potential, and the parameters that reach no result, with reasons.

    `elements`: the atomic numbers to keep, by default all that the embedding has a row for, trained or not.
    Raises EquijaxError for options that equijax's EquiformerV2 does not have, and when a key or shape is not expected.
    """
    options, prefixes = _options(export.model)
    rows = options["max_num_elements"]
    kept = kept_elements(elements, rows)
    units = target_units(export.normalizers)
    average_atoms = (options["avg_num_nodes"] or AVERAGE_ATOMS) * units.force_rmsd / units.energy_rmsd
    config = _config(options, average_atoms, units.energy_mean)
    state = FairchemState(export.state)
    params = _Reader(state, config, np.array(kept), rows, prefixes).params()
    _compare_constants(state, config, prefixes["backbone"])
    energies = _element_energies(export, state, options, prefixes["backbone"])
    state.finish()
    potential = Potential(
        model_config=config,
        statistics=ModelStatistics(tuple(kept), options["avg_degree"] or AVERAGE_DEGREE, scale=units.force_rmsd),
        atomic_energies={z: float(energies[z]) for z in kept},
        params=params,
        dtype="float32",
        metadata={"origin": "fairchem", "model_class": "EquiformerV2"},
    )
    potential.check_parameters()
    return potential, state.unused


def _options(model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of the backbone with the defaults filled in, and the prefixes of its and the heads' keys."""
    backbone, prefixes = split_model(model, BACKBONES, ENERGY_HEADS, FORCE_HEADS)
    options = with_defaults(backbone, DEFAULTS, IRRELEVANT)
    refuse = (
        (len(options["lmax_list"]) != 1, f"several resolutions (lmax_list {options['lmax_list']})"),
        (options["norm_type"] not in NORMS, f"the norm {options['norm_type']}"),
        (not options["use_atom_edge_embedding"], "radial functions without species (use_atom_edge_embedding)"),
        (options["share_atom_edge_embedding"], "species embeddings shared by layers (share_atom_edge_embedding)"),
        (options["use_m_share_rad"], "radial factors shared by all m (use_m_share_rad)"),
        (options["use_s2_act_attn"], "attention weights after the activation (use_s2_act_attn)"),
        (options["distance_function"] != "gaussian", f"the radial basis {options['distance_function']}"),
        (not options["use_sep_s2_act"] and not options["use_gate_act"], "activations that are not separable"),
        (options["use_gate_act"] and options["use_grid_mlp"], "gates with grid networks"),
        (options["grid_resolution"] is None and not options["use_gate_act"], "grids without a grid_resolution"),
        (not options["regress_forces"], "no forces (regress_forces)"),
    )
    for condition, feature in refuse:
        if condition:
            raise EquijaxError(f"this model uses {feature}, which equijax's EquiformerV2 does not have")
    return options, prefixes


def _config(options: Mapping[str, Any], average_atoms: float, shift: float) -> EquiformerV2Config:
    if options["use_gate_act"]:
        activation, feed_forward = {"name": "gate"}, {"name": "gate"}
    else:
        on_grid = {"resolution": options["grid_resolution"]}
        activation = {"name": "separable_s2", **on_grid}
        feed_forward = {"name": "grid_mlp" if options["use_grid_mlp"] else "separable_s2", **on_grid}
    return EquiformerV2Config.model_validate(
        {
            "cutoff": float(options["max_radius"]),
            "channels": options["sphere_channels"],
            "lmax": options["lmax_list"][0],
            "mmax": options["mmax_list"][0],
            "num_layers": options["num_layers"],
            "attention": {
                "heads": options["num_heads"],
                "hidden_channels": options["attn_hidden_channels"],
                "alpha_channels": options["attn_alpha_channels"],
                "value_channels": options["attn_value_channels"],
                "renormalize": options["use_attn_renorm"],
                "activation": activation,
            },
            "feed_forward": feed_forward,
            "feed_forward_channels": options["ffn_hidden_channels"],
            "norm": NORMS[options["norm_type"]],
            "edge_channels": options["edge_channels"],
            "radial_basis": {"name": "gaussian", "count": GAUSSIANS, "width": 2.0},
            "parity": "any",
            "forces": "direct",
            "envelope": "none",
            "max_neighbors": options["max_neighbors"],
            "isolated_atoms": "learned",
            "average_atoms": average_atoms,
            "structure_shift": shift,
        }
    )


class _Reader:
    """Takes the parameters of one model out of a state dict; torch keeps kernels as [out, in]."""

    def __init__(
        self, state: FairchemState, config: EquiformerV2Config, kept: np.ndarray, rows: int, prefixes: dict[str, str]
    ) -> None:
        self.state, self.config, self.kept, self.rows, self.prefixes = state, config, kept, rows, prefixes

    def params(self) -> dict[str, Any]:
        config, backbone = self.config, self.prefixes["backbone"]
        degree = f"{backbone}edge_degree_embedding"
        blocks = [self._block(f"{backbone}blocks.{i}") for i in range(config.num_layers)]
        return {
            "node_embedding": {"table": self._table(f"{backbone}sphere_embedding.weight", config.channels)},
            "edge_degree_embedding": {
                "radial": self._radial(degree, f"{degree}.rad_func", (config.lmax + 1) * config.channels)
            },
            "blocks": stacked(blocks),
            "norm": self._norm(f"{backbone}norm"),
            "energy_head": self._energy_head(self.prefixes["energy"]),
            "force_head": self._attention(self.prefixes["forces"], features=1, only_vectors=True),
        }

    def _block(self, prefix: str) -> dict[str, Any]:
        return {
            "norm_1": self._norm(f"{prefix}.norm_1"),
            "attention": self._attention(f"{prefix}.ga", self.config.channels),
            "norm_2": self._norm(f"{prefix}.norm_2"),
            "feed_forward": self._feed_forward(f"{prefix}.ffn"),
        }

    def _table(self, key: str, width: int) -> np.ndarray:
        return self.state.take(key, self.rows, width)[self.kept]

    def _dense(self, key: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, np.ndarray]:
        params = {"kernel": self.state.take(f"{key}.weight", outputs, inputs).T}
        return params | ({"bias": self.state.take(f"{key}.bias", outputs)} if bias else {})

    def _degree_dense(self, key: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        weight = self.state.take(f"{key}.weight", self.config.lmax + 1, outputs, inputs)
        return {"kernel": weight.swapaxes(1, 2), "bias": self.state.take(f"{key}.bias", outputs)}

    def _layer_norm(self, key: str, width: int) -> dict[str, np.ndarray]:
        return {"scale": self.state.take(f"{key}.weight", width), "bias": self.state.take(f"{key}.bias", width)}

    def _norm(self, key: str) -> dict[str, Any]:
        lmax, channels = self.config.lmax, self.config.channels
        if self.config.norm.name == "rms_norm_sh":
            return {
                "scale": self.state.take(f"{key}.affine_weight", lmax + 1, channels),
                "bias": self.state.take(f"{key}.affine_bias", channels),
            }
        return {
            "scalars": self._layer_norm(f"{key}.norm_l0", channels),
            "scale": self.state.take(f"{key}.affine_weight", lmax, channels),
        }

    def _radial(self, embeddings: str, network: str, outputs: int, used: int | None = None) -> dict[str, Any]:
        """`used`: how many of the outputs, the first ones, are used."""
        width = self.config.edge_channels
        first = self._dense(f"{network}.net.0", GAUSSIANS + 2 * width, width)
        basis, source, target = np.split(first["kernel"], [GAUSSIANS, GAUSSIANS + width])
        last = self._dense(f"{network}.net.6", width, outputs)
        if used is not None and used < outputs:
            last = {key: value[..., :used] for key, value in last.items()}
            self.state.unused[f"{network}.net.6[{used}:]"] = MISSING_WEIGHTS
        return {
            "layer_0": {"kernel": basis, "bias": first["bias"]},
            "source": self._table(f"{embeddings}.source_embedding.weight", width),
            "source_layer": {"kernel": source},
            "target": self._table(f"{embeddings}.target_embedding.weight", width),
            "target_layer": {"kernel": target},
            "norm_0": self._layer_norm(f"{network}.net.1", width),
            "layer_1": self._dense(f"{network}.net.3", width, width),
            "norm_1": self._layer_norm(f"{network}.net.4", width),
            "layer_2": last,
        }

    def _attention(self, prefix: str, features: int, only_vectors: bool = False) -> dict[str, Any]:
        """`only_vectors`: of the result, only degree 1 is used, and what makes it."""
        config, options = self.config, self.config.attention
        lmax, mmax, hidden = config.lmax, config.mmax, options.hidden_channels
        values, inputs = options.heads * options.value_channels, 2 * config.channels
        alphas = options.heads * options.alpha_channels
        extra = alphas + options.activation.scalar_count(lmax, hidden)
        reach = min(mmax, 1) if only_vectors and not options.activation.mixes_orders else mmax
        counts = [inputs * (lmax + 1 - m) for m in range(mmax + 1)]
        project = self._degree_dense(f"{prefix}.proj", values, features)
        second = self._so2_linear(f"{prefix}.so2_conv_2", hidden, values, 0, mmax)
        if only_vectors:
            project = {"kernel": project["kernel"][1:2]}
            second = {
                "m_0": second["m_0"][:, values : 2 * values],
                "bias": second["bias"][values : 2 * values],
                # Both halves, real and imaginary, start with degree 1.
                **({"m_1": np.concatenate([half[:, :values] for half in np.split(second["m_1"], 2, axis=1)], axis=1)}
                   if mmax else {}),
            }  # fmt: skip
            self.state.unused[f"{prefix}.so2_conv_2 and proj, all degrees but 1"] = MISSING_WEIGHTS
        params = {
            "radial": self._radial(prefix, f"{prefix}.so2_conv_1.rad_func", sum(counts), sum(counts[: reach + 1])),
            "first": self._so2_linear(f"{prefix}.so2_conv_1", inputs, hidden, extra, reach),
            "alpha_dot": self.state.take(f"{prefix}.alpha_dot", options.heads, options.alpha_channels),
            "second": second,
            "project": project,
        }
        if options.renormalize:
            params["alpha_norm"] = self._layer_norm(f"{prefix}.alpha_norm", options.alpha_channels)
        return params

    def _so2_linear(self, prefix: str, inputs: int, outputs: int, extra: int, reach: int) -> dict[str, np.ndarray]:
        lmax = self.config.lmax
        first = self._dense(f"{prefix}.fc_m0", (lmax + 1) * inputs, extra + (lmax + 1) * outputs)
        params = {"m_0": first["kernel"], "bias": first["bias"]}
        for m in range(1, self.config.mmax + 1):
            degrees = lmax + 1 - m
            key = f"{prefix}.so2_m_conv.{m - 1}.fc"
            if m > reach:
                self.state.leave_out(f"{key}.weight", MISSING_WEIGHTS, 2 * degrees * outputs, degrees * inputs)
            else:
                params[f"m_{m}"] = self._dense(key, degrees * inputs, 2 * degrees * outputs, bias=False)["kernel"]
        return params

    def _feed_forward(self, prefix: str) -> dict[str, Any]:
        config, hidden = self.config, self.config.feed_forward_channels
        params: dict[str, Any] = {
            "first": self._degree_dense(f"{prefix}.so3_linear_1", config.channels, hidden),
            "second": self._degree_dense(f"{prefix}.so3_linear_2", hidden, config.channels),
        }
        if isinstance(config.feed_forward, GridMLP):
            params["scalars"] = self._dense(f"{prefix}.scalar_mlp.0", config.channels, hidden)
            for layer in range(3):
                key = f"{prefix}.grid_mlp.{2 * layer}"
                params[f"grid_{layer}"] = self._dense(key, hidden, hidden, bias=False)
        else:
            count = config.feed_forward.scalar_count(config.lmax, hidden)
            params["scalars"] = self._dense(f"{prefix}.gating_linear", config.channels, count)
        return params

    def _energy_head(self, prefix: str) -> dict[str, Any]:
        """The path of the scalars through a feed-forward network with one result."""
        config, hidden = self.config, self.config.feed_forward_channels
        first = self._degree_dense(f"{prefix}.so3_linear_1", config.channels, hidden)
        second = self._degree_dense(f"{prefix}.so3_linear_2", hidden, 1)
        on_grid = isinstance(config.feed_forward, GridMLP | SeparableS2)
        self.state.unused[f"{prefix}.so3_linear_1{'' if on_grid else '[1:]'}"] = MISSING_WEIGHTS
        self.state.unused[f"{prefix}.so3_linear_2[1:]"] = MISSING_WEIGHTS
        if isinstance(config.feed_forward, GridMLP):
            scalars = self._dense(f"{prefix}.scalar_mlp.0", config.channels, hidden)
            for layer in range(3):
                self.state.leave_out(f"{prefix}.grid_mlp.{2 * layer}.weight", MISSING_WEIGHTS, hidden, hidden)
        elif isinstance(config.feed_forward, SeparableS2):
            scalars = self._dense(f"{prefix}.gating_linear", config.channels, hidden)
        else:
            scalars = {"kernel": first["kernel"][0], "bias": first["bias"]}
            count = config.lmax * hidden
            self.state.leave_out(f"{prefix}.gating_linear.weight", MISSING_WEIGHTS, count, config.channels)
            self.state.leave_out(f"{prefix}.gating_linear.bias", MISSING_WEIGHTS, count)
        return {"first": scalars, "second": {"kernel": second["kernel"][0], "bias": second["bias"]}}


def _compare_constants(state: FairchemState, config: EquiformerV2Config, backbone: str) -> None:
    lmax, mmax = config.lmax, config.mmax
    assert isinstance(config.radial_basis, Gaussian)
    state.constant(f"{backbone}distance_expansion.offset", np.linspace(0, config.cutoff, config.radial_basis.count))
    activation = config.attention.activation
    if isinstance(activation, SeparableS2):
        size = activation.resolution
        grid = published_grid(lmax, mmax, size).rows(np.sort(m_primary_rows(lmax, mmax)))
        for name, matrix in (("to_grid_mat", grid.to_grid), ("from_grid_mat", grid.from_grid.T)):
            state.constant(f"{backbone}SO3_grid.{lmax}.{mmax}.{name}", matrix.reshape(size, size, -1))


def _element_energies(
    export: FairchemExport, state: FairchemState, options: Mapping[str, Any], backbone: str
) -> np.ndarray:
    """Energies of the elements that are added to the results, eV, by atomic number; zero without references."""
    energies = np.zeros(options["max_num_elements"])
    if options["load_energy_lin_ref"]:
        references = state.take(f"{backbone}energy_lin_ref", len(energies)).astype(np.float64)
        return references if options["use_energy_lin_ref"] else energies
    if export.element_energies is not None:
        count = min(len(energies), len(export.element_energies))
        energies[:count] = export.element_energies.reshape(-1)[:count]
    return energies
