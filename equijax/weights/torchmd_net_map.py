"""torchmd-net TensorNet -> equijax Potential: every entry of the state dict is taken exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.models.contract import ModelStatistics
from equijax.models.tensornet import TensorNetConfig
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.weights.torch_state import TorchState
from equijax.weights.torchmd_net_checkpoint import TorchmdNetExport

_EMBEDDING = "representation_model.tensor_embedding"


def tensornet_config(hyper_parameters: Mapping[str, Any], total_charge: float = 0.0) -> TensorNetConfig:
    """The config with the published forms; raises EquijaxError that names the first feature we do not have."""
    h = hyper_parameters
    refuse = (
        (h.get("model") != "tensornet", f"the architecture {h.get('model')!r}; expected 'tensornet'"),
        (h.get("rbf_type") != "expnorm", f"rbf_type {h.get('rbf_type')!r}; expected 'expnorm'"),
        (h.get("activation") != "silu", f"activation {h.get('activation')!r}; expected 'silu'"),
        (h.get("cutoff_lower", 0) != 0, f"cutoff_lower {h.get('cutoff_lower')}; expected 0"),
        (h.get("output_model") != "Scalar", f"output_model {h.get('output_model')!r}; expected 'Scalar'"),
        (h.get("reduce_op") not in ("sum", "add"), f"reduce_op {h.get('reduce_op')!r}; expected 'sum'"),
        (h.get("atom_filter", -1) > -1, f"atom_filter {h.get('atom_filter')}; expected -1"),
        (h.get("precision") not in (32, 64), f"precision {h.get('precision')}; expected 32 or 64"),
    )
    for condition, feature in refuse:
        if condition:
            raise EquijaxError(f"hyper_parameters: this torchmd-net model has {feature}")
    return TensorNetConfig(
        cutoff=float(h["cutoff_upper"]),
        channels=int(h["embedding_dimension"]),
        num_layers=int(h["num_layers"]),
        num_radial=int(h["num_rbf"]),
        group=h.get("equivariance_invariance_group", "O(3)"),
        total_charge=total_charge,
        envelope="cosine",
        isolated_atoms="learned",
        radial_basis="parameters",
    )


def has_atomref(hyper_parameters: Mapping[str, Any]) -> bool:
    """Whether energies of elements are added; raises EquijaxError for any other prior."""
    h = hyper_parameters
    priors = h.get("prior_model") or []
    priors = priors if isinstance(priors, list) else [priors]
    names = [name for prior in priors for name in (prior if isinstance(prior, dict) else {prior: None})]
    if any(name != "Atomref" for name in names) or len(names) > 1:
        raise EquijaxError(
            f"hyper_parameters: prior_model is {', '.join(names)}; equijax has energies of elements (Atomref) only"
        )
    arguments = [value for prior in priors if isinstance(prior, dict) for value in prior.values()]
    given = h.get("prior_args")
    arguments = arguments if given is None else given if isinstance(given, list) else [given]
    if any(not (entry or {}).get("enable", True) for entry in arguments):
        raise EquijaxError(
            "hyper_parameters: the prior Atomref is switched off (enable: false), so energies lack those of the "
            "elements; fix: convert the checkpoint with enable: true"
        )
    return bool(names)


class _State(TorchState):
    """Layers of torch as those of our modules."""

    def rows(self, key: str, columns: int) -> np.ndarray:
        """The array [any number of rows, columns] under `key`, once."""
        return self.take(key, self._left[key].shape[0] if key in self._left else 0, columns)

    def dense(self, key: str, inputs: int, features: int) -> dict[str, np.ndarray]:
        """Weight and bias of a torch Linear as those of a `Dense`."""
        return {"kernel": self.take(f"{key}.weight", features, inputs).T, "bias": self.take(f"{key}.bias", features)}

    def norm(self, key: str, size: int) -> dict[str, np.ndarray]:
        return {"scale": self.take(f"{key}.weight", size), "bias": self.take(f"{key}.bias", size)}

    def mix(self, key: str, numbers: Sequence[int], channels: int) -> dict[str, np.ndarray]:
        """Linear maps without bias of I, A and S as those of a `DegreeDense`."""
        return {"kernel": np.stack([self.take(f"{key}.{i}.weight", channels, channels).T for i in numbers])}

    def finish(self) -> None:
        """The box holds no weights, and the first Atomref was replaced by the trained one; nothing else may be left."""
        for key in ("representation_model.distance.box", "prior_model.0.initial_atomref"):
            self._left.pop(key, None)
        self.refuse_rest("TensorNet")


def to_potential(
    export: TorchmdNetExport,
    energy_unit: float = 1.0,
    elements: Sequence[int] | None = None,
    num_atoms: int | None = None,
    total_charge: float = 0.0,
) -> Potential:
    """The Potential of a checkpoint whose energies are in `energy_unit` eV and whose lengths are in Å.

    `elements`: atomic numbers to keep, by default those with an energy in Atomref. `num_atoms` spreads the energy that
    torchmd-net adds once per molecule, `mean`, over the atoms of molecules of that size.
    """
    h, state = export.hyper_parameters, _State(export.state)
    config = tensornet_config(h, total_charge)
    c, b = config.channels, config.num_radial
    table = state.rows(f"{_EMBEDDING}.emb.weight", c)
    atomref = state.rows("prior_model.0.atomref.weight", 1)[:, 0] if has_atomref(h) else None
    kept = _elements(elements, atomref, len(table))

    expansion = "representation_model.distance_expansion"
    params: dict[str, Any] = {
        "radial": {name: state.take(f"{expansion}.{name}", b) for name in ("means", "betas")},
        "embedding": {
            "species": {"table": table[kept]},
            "species_pair": state.dense(f"{_EMBEDDING}.emb2", 2 * c, c),
            "distance": _stacked([state.dense(f"{_EMBEDDING}.distance_proj{k}", b, c) for k in (1, 2, 3)]),
            "norm": state.norm(f"{_EMBEDDING}.init_norm", c),
            "scalars_0": state.dense(f"{_EMBEDDING}.linears_scalar.0", c, 2 * c),
            "scalars_1": state.dense(f"{_EMBEDDING}.linears_scalar.1", 2 * c, 3 * c),
            "mix": state.mix(f"{_EMBEDDING}.linears_tensor", range(3), c),
        },
        "readout": {
            "norm": state.norm("representation_model.out_norm", 3 * c),
            "linear": state.dense("representation_model.linear", 3 * c, c),
            "output_0": state.dense("output_model.output_network.layers.0", c, c // 2),
            "output_1": state.dense("output_model.output_network.layers.2", c // 2, 1),
        },
    }
    widths = (b, c, 2 * c, 3 * c)
    for layer in range(config.num_layers):
        prefix = f"representation_model.layers.{layer}"
        params[f"layers_{layer}"] = {
            "radial_network": {
                f"layer_{i}": state.dense(f"{prefix}.linears_scalar.{i}", widths[i], widths[i + 1]) for i in range(3)
            },
            "mix_in": state.mix(f"{prefix}.linears_tensor", range(3), c),
            "mix_out": state.mix(f"{prefix}.linears_tensor", range(3, 6), c),
        }
    mean, std = float(state.take("mean")), float(state.take("std"))
    state.finish()

    dtype: DType = "float32" if h["precision"] == 32 else "float64"
    references = np.zeros(len(table)) if atomref is None else atomref.astype(np.float64)
    potential = Potential(
        model_config=config,
        statistics=ModelStatistics(tuple(kept), avg_num_neighbors=1.0, scale=std * energy_unit),
        atomic_energies={z: float(references[z] + _per_atom(mean, num_atoms)) * energy_unit for z in kept},
        params=_cast(params, dtype),
        dtype=dtype,
        metadata={"origin": "torchmd-net"},
    )
    potential.check_parameters()
    return potential


def _elements(elements: Sequence[int] | None, atomref: np.ndarray | None, rows: int) -> list[int]:
    if elements is None:
        if atomref is None:
            raise EquijaxError("the checkpoint does not say which elements it knows; name them with --elements H,C,...")
        elements = np.flatnonzero(atomref).tolist()
    if not elements:
        raise EquijaxError("no energy of an element is set in Atomref; name the elements with --elements H,C,...")
    kept = sorted(set(elements))
    if kept[-1] >= (rows if atomref is None else min(rows, len(atomref))):
        raise EquijaxError(f"--elements: atomic number {kept[-1]} is beyond the tables of the checkpoint")
    return kept


def _per_atom(mean: float, num_atoms: int | None) -> float:
    if mean == 0.0:
        return 0.0
    if num_atoms is None:
        raise EquijaxError(
            f"the checkpoint adds its mean {mean:g} once per molecule, whatever its size, which no sum over atoms can "
            "do; for a model of molecules with N atoms give --num-atoms N, which spreads it over their atoms"
        )
    return mean / num_atoms


def _stacked(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _cast(tree: Any, dtype: str) -> Any:
    if isinstance(tree, dict):
        return {name: _cast(value, dtype) for name, value in tree.items()}
    return np.ascontiguousarray(tree, dtype=dtype)
