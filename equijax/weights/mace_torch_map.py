"""mace-torch state dict -> equijax Potential: a total, checked, pure reshaping of arrays.

Every key is consumed exactly once: as a parameter, as a constant that must agree with ours, or as one of the
`IGNORED` patterns, which carry no information. Nothing is rescaled, because equijax keeps e3nn's parameters;
the one exception is a head selected out of H, whose last weights absorb 1/√H from the fan-in of all heads.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.layout import FeatureIrreps, irrep_name, parse_feature_irreps
from equijax.irreps.wigner_3j import wigner_3j
from equijax.models.contract import ModelStatistics
from equijax.models.mace import MACEConfig
from equijax.ops.mace_basis import mace_polynomials, monomials
from equijax.potential.potential import Potential
from equijax.weights.mace_torch_config import head_index, mace_config
from equijax.weights.mace_torch_export import MaceTorchExport
from equijax.weights.mace_torch_state import StateDict


def convolution_paths(hidden_lmax: int, lmax: int) -> dict[str, int]:
    """Number of natural-parity paths (l1, l2, l3) into every degree l3, l1 <= hidden_lmax, l2, l3 <= lmax."""
    counts = {irrep_name(l): 0 for l in range(lmax + 1)}
    for l1 in range(hidden_lmax + 1):
        for l2 in range(lmax + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax) + 1):
                counts[irrep_name(l3)] += (l1 + l2 + l3) % 2 == 0
    return counts


def to_potential(export: MaceTorchExport, head: str | None = None) -> tuple[Potential, float]:
    """The Potential of one head, and the largest relative deviation of a stored constant from ours.

    Raises EquijaxError for unsupported features, and when a key or a shape is not as expected.
    """
    config = mace_config(export.config)
    which, heads = head_index(export.config, head), len(export.config["heads"])
    state = StateDict(export.state)
    z = [int(number) for number in export.config["atomic_numbers"]]
    order = np.argsort(z)  # equijax keeps elements ascending; mace-torch keeps the order of its table
    elements = len(z)
    hidden = parse_feature_irreps(export.config["layer_irreps"][0])
    channels, lmax = hidden.channels, config.lmax

    _take_constants(state, config, z)
    embedding = state.take("node_embedding.linear.weight", elements, channels)[order]
    params: dict[str, Any] = {"node_embedding": {"linear": {"0e": embedding}}}
    features = FeatureIrreps(channels, 0)
    for t, irreps in enumerate(export.config["layer_irreps"]):
        outputs = parse_feature_irreps(irreps)
        block = config.first_interaction if t == 0 else config.interaction
        params[f"interactions_{t}"] = _interaction(state, t, block, features, outputs, config, order)
        params[f"products_{t}"] = _product(state, t, outputs, lmax, config.correlation, order)
        params[f"readouts_{t}"] = _readout(state, t, config, channels, which, heads)
        features = outputs

    energies = state.take("atomic_energies_fn.atomic_energies", heads, elements)
    scale, shift = 1.0, 0.0
    if export.config["model_class"] == "ScaleShiftMACE":
        scale = float(state.take("scale_shift.scale", heads)[which])
        shift = float(state.take("scale_shift.shift", heads)[which])
    state.finish()
    statistics = ModelStatistics(
        atomic_numbers=tuple(sorted(z)),
        avg_num_neighbors=export.config["interactions"][0]["avg_num_neighbors"],
        scale=scale,
        shift=shift,
    )
    dtype = export.config["dtype"]
    potential = Potential(
        model_config=config,
        statistics=statistics,
        atomic_energies={number: float(energies[which, i]) for i, number in enumerate(z)},
        params=_cast(params, dtype),
        dtype=dtype,
        metadata={"origin": "mace-torch", "model_class": export.config["model_class"],
                  "head": export.config["heads"][which]},
    )  # fmt: skip
    potential.check_parameters()
    return potential, state.largest_deviation


def _cast(tree: Any, dtype: str) -> Any:
    if isinstance(tree, dict):
        return {name: _cast(value, dtype) for name, value in tree.items()}
    return np.ascontiguousarray(tree, dtype=dtype)


def _take_constants(state: StateDict, config: MACEConfig, z: list[int]) -> None:
    """Buffers that describe the architecture: compare them with our values."""
    from ase.data import covalent_radii

    radial = "radial_embedding"
    state.constant("atomic_numbers", z)
    state.constant("r_max", config.cutoff)
    state.constant("num_interactions", config.num_layers)
    frequencies = np.arange(1, config.num_bessel + 1) * np.pi / config.cutoff
    state.constant(f"{radial}.bessel_fn.bessel_weights", frequencies)
    state.constant(f"{radial}.bessel_fn.r_max", config.cutoff)
    state.constant(f"{radial}.bessel_fn.prefactor", np.sqrt(2.0 / config.cutoff))
    state.constant(f"{radial}.cutoff_fn.p", config.polynomial_cutoff_power)
    state.constant(f"{radial}.cutoff_fn.r_max", config.cutoff)
    transform = {"none": {}, "agnesi": {"q": 0.9183, "p": 4.5791, "a": 1.0805}, "soft": {"alpha": 4.0}}
    for name, value in transform[config.distance_transform].items():
        state.constant(f"{radial}.distance_transform.{name}", value)
    # Newer ASE tables may only add elements at the end; compare as far as both go.
    radii = lambda table: table[: len(covalent_radii)]  # noqa: E731
    if config.distance_transform != "none":
        state.constant(f"{radial}.distance_transform.covalent_radii", covalent_radii, radii)
    if config.zbl:
        zbl: dict[str, Any] = {"c": [0.1818, 0.5099, 0.2802, 0.02817], "p": config.polynomial_cutoff_power,
               "a_exp": 0.3, "a_prefactor": 0.4543}  # fmt: skip
        for name, value in zbl.items():
            state.constant(f"pair_repulsion_fn.{name}", value)
        state.constant("pair_repulsion_fn.covalent_radii", covalent_radii, radii)
    state.constants_matching(
        r"interactions\.\d+\.conv_tp\._compiled_main_left_right\._w3j_(\d+)_(\d+)_(\d+)",
        lambda match: wigner_3j(*(int(l) for l in match.groups())),
    )


def _interaction(
    state: StateDict, t: int, block: str, features: FeatureIrreps, outputs: FeatureIrreps, config: MACEConfig,
    order: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    k, elements, prefix = features.channels, len(order), f"interactions.{t}"
    paths = convolution_paths(features.lmax, config.lmax)
    widths = (config.num_bessel, *config.radial_mlp, sum(paths.values()) * k)
    # The residual connection has the degrees that input and output share; otherwise the message goes through.
    skip_lmax = min(features.lmax, outputs.lmax) if block.endswith("residual") else config.lmax
    tree: dict[str, Any] = {
        "linear_up": state.split(f"{prefix}.linear_up.weight", _square(k, features.lmax)),
        "radial_mlp": {
            f"layer_{i}": state.take(f"{prefix}.conv_tp_weights.layer{i}.weight", *shape)
            for i, shape in enumerate(itertools.pairwise(widths))
        },
        "linear": state.split(f"{prefix}.linear.weight", {name: (n, k, k) for name, n in paths.items()}),
        "skip": {
            name: weight[:, order]
            for name, weight in state.split(
                f"{prefix}.skip_tp.weight", {irrep_name(l): (k, elements, k) for l in range(skip_lmax + 1)}
            ).items()
        },
    }
    # Degrees of the output that the skip connection cannot reach are masked.
    reached = FeatureIrreps(k, skip_lmax).dim * k
    produced = FeatureIrreps(k, outputs.lmax if block.endswith("residual") else config.lmax).dim * k
    state.constant(f"{prefix}.skip_tp.output_mask", np.arange(produced) < reached)
    if block.startswith("density"):
        tree["density"] = {"layer_0": state.take(f"{prefix}.density_fn.layer0.weight", config.num_bessel, 1)}
    return tree


def _square(channels: int, lmax: int) -> dict[str, tuple[int, ...]]:
    return {irrep_name(l): (channels, channels) for l in range(lmax + 1)}


def _product(
    state: StateDict, t: int, outputs: FeatureIrreps, lmax: int, correlation: int, order: np.ndarray
) -> dict[str, Any]:
    contraction: dict[str, Any] = {}
    for l in range(outputs.lmax + 1):
        prefix = f"products.{t}.symmetric_contractions.contractions.{l}"
        weights = {}
        for nu in range(1, correlation + 1):
            basis = mace_polynomials(lmax, l, nu)
            key = "weights_max" if nu == correlation else f"weights.{correlation - 1 - nu}"
            weights[f"nu_{nu}"] = state.take(f"{prefix}.{key}", len(order), len(basis), outputs.channels)[order]
            # The stored basis is compared in the only sense that matters, as polynomials of the features.
            symmetrise = lambda u, l=l, nu=nu: _polynomials_of(u, lmax, l, nu)  # noqa: E731
            state.constant(f"{prefix}.U_matrix_{nu}", basis, symmetrise)
        contraction[irrep_name(l)] = weights
    linear = state.split(f"products.{t}.linear.weight", _square(outputs.channels, outputs.lmax))
    return {"symmetric_contraction": contraction, "linear": linear}


def _polynomials_of(u: np.ndarray, lmax: int, l: int, nu: int) -> np.ndarray:
    """U [(2l+1,) D, ..., D, n] as coefficients over monomials, [n, 2l+1, monomials]."""
    dim = (lmax + 1) ** 2
    expected = (() if l == 0 else (2 * l + 1,)) + (dim,) * nu
    if u.shape[:-1] != expected:
        raise EquijaxError(f"state dict: U_matrix_{nu} for l={l} has shape {u.shape}; expected {(*expected, 'n')}")
    flat = u.reshape(2 * l + 1, dim**nu, u.shape[-1])
    position = {monomial: i for i, monomial in enumerate(monomials(dim, nu))}
    index = np.array([position[tuple(sorted(rows))] for rows in np.ndindex(*(dim,) * nu)])
    coefficients = np.zeros((len(position), 2 * l + 1, u.shape[-1]))
    np.add.at(coefficients, index, flat.swapaxes(0, 1))
    return coefficients.transpose(2, 1, 0)


def _readout(state: StateDict, t: int, config: MACEConfig, channels: int, which: int, heads: int) -> dict[str, Any]:
    prefix = f"readouts.{t}"
    if t < config.num_layers - 1 or config.num_layers == 1:
        return {"linear": {"0e": state.take(f"{prefix}.linear.weight", channels, heads)[:, [which]]}}
    width = config.readout_mlp
    own = slice(which * width, (which + 1) * width)
    first = state.take(f"{prefix}.linear_1.weight", channels, heads * width)[:, own]
    # e3nn divides by the root of the scalars of all heads; ours by the root of this head's.
    second = state.take(f"{prefix}.linear_2.weight", heads * width, heads)[own, [which]].reshape(width, 1)
    return {"linear_1": {"0e": first}, "linear_2": {"0e": second.astype(np.float64) / np.sqrt(heads)}}
