"""The config of an exported mace-torch module as ours, or a refusal that names the feature we do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equijax.errors import EquijaxError, did_you_mean
from equijax.irreps.layout import parse_feature_irreps
from equijax.models.mace import MACEConfig

BLOCKS = {
    "RealAgnosticInteractionBlock": "agnostic",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "density",
    "RealAgnosticDensityResidualInteractionBlock": "density_residual",
}
TRANSFORMS = {None: "none", "AgnesiTransform": "agnesi", "SoftTransform": "soft"}
TORCH_SILU = 1.6791767923989418


def mace_config(config: Mapping[str, Any]) -> MACEConfig:
    """The equijax config of an exported module; raises EquijaxError naming the first unsupported feature."""
    layers, last = config["layer_irreps"], config["readouts"][-1]
    classes = [interaction["class"] for interaction in config["interactions"]]
    averages = {interaction["avg_num_neighbors"] for interaction in config["interactions"]}
    mlps = {None if i["radial_mlp"] is None else tuple(i["radial_mlp"][1:-1]) for i in config["interactions"]}
    expected_readouts = ["LinearReadoutBlock"] * (len(layers) - 1) + [
        "NonLinearReadoutBlock" if len(layers) > 1 else "LinearReadoutBlock"
    ]
    activation, correlations = last["activation"], set(config["correlation"])
    constants = {i["activation_constant"] for i in config["interactions"]}
    constants |= {activation["constant"]} if activation else set()
    refuse = (
        (config["cuequivariance"], "cuEquivariance layouts; convert it with mace_convert_cueq_to_e3nn first"),
        (any(c not in BLOCKS for c in classes), f"interaction blocks {', '.join(sorted(set(classes)))}"),
        (len(set(classes[1:])) > 1, f"different blocks after the first layer: {', '.join(classes[1:])}"),
        (config["use_agnostic_product"], "a product basis without species (use_agnostic_product)"),
        (config["use_so3"], "SO(3) features (use_so3)"),
        (config["use_last_readout_only"], "a readout of the last layer only (use_last_readout_only)"),
        (config["has_embeddings"], "embeddings of charge, spin or other global inputs (embedding_specs)"),
        (config["edge_irreps"] is not None, f"separate edge features (edge_irreps {config['edge_irreps']})"),
        (not config["apply_cutoff"], "the cutoff outside the radial MLP (apply_cutoff False)"),
        (config["radial_basis"] != "BesselBasis", f"the radial basis {config['radial_basis']}"),
        (config["cutoff_function"] != "PolynomialCutoff", f"the cutoff {config['cutoff_function']}"),
        (config["distance_transform"] not in TRANSFORMS, f"the transform {config['distance_transform']}"),
        (config["pair_repulsion"] not in (None, "ZBLBasis"), f"pair repulsion {config['pair_repulsion']}"),
        (None in correlations or len(correlations) != 1, "different correlations per layer"),
        (len(averages) != 1, f"different avg_num_neighbors per layer ({sorted(averages)})"),
        (None in mlps or len(mlps) != 1, "different radial networks per layer"),
        ([r["class"] for r in config["readouts"]] != expected_readouts, "readouts "
         + ", ".join(r["class"] for r in config["readouts"])),
        (activation is not None and activation["name"] != "silu", f"the readout activation {activation}"),
        (any(c is None or abs(c - TORCH_SILU) > 1e-9 for c in constants), f"activation scales {constants}"),
        (len(set(layers[:-1])) > 1, f"hidden irreps that change with the layer ({', '.join(layers)})"),
        (parse_feature_irreps(layers[-1]).lmax != 0, f"a last layer with vectors ({layers[-1]})"),
        (max(c or 0 for c in correlations) > 3, f"correlation {correlations}"),
    )  # fmt: skip
    for condition, feature in refuse:
        if condition:
            raise EquijaxError(f"this mace-torch model uses {feature}, which equijax's MACE does not have")
    (radial_mlp,) = mlps
    fields: dict[str, Any] = {
        "name": "mace",
        "cutoff": config["r_max"],
        "hidden_irreps": layers[0],
        "lmax": config["max_ell"],
        "num_layers": len(layers),
        "correlation": config["correlation"][0],
        "num_bessel": config["num_bessel"],
        "polynomial_cutoff_power": config["polynomial_cutoff_power"],
        "radial_mlp": radial_mlp,
        "first_interaction": BLOCKS[classes[0]],
        "interaction": BLOCKS[classes[-1]],
        "distance_transform": TRANSFORMS[config["distance_transform"]],
        "zbl": config["pair_repulsion"] is not None,
        "isolated_atoms": "learned",
        "activation_norm": "torch_e3nn",
    }
    if activation is not None:
        fields["readout_mlp"] = _readout_width(config)
    return MACEConfig(**fields)


def _readout_width(config: Mapping[str, Any]) -> int:
    """Hidden scalars of the last readout for one head; mace-torch lists those of all heads together."""
    return parse_feature_irreps(config["readouts"][-1]["hidden_irreps"]).channels // len(config["heads"])


def head_index(config: Mapping[str, Any], head: str | None) -> int:
    """Position of the head to import; the name may be left out when there is only one."""
    heads = config["heads"]
    if head is None:
        if len(heads) > 1:
            raise EquijaxError(f"the model has {len(heads)} heads; choose one with --head: {', '.join(heads)}")
        return 0
    if head not in heads:
        raise EquijaxError(f"there is no head '{head}'; {did_you_mean(head, heads)}")
    return heads.index(head)
