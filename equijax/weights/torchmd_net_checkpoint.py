"""TensorNet checkpoints of torchmd-net as plain arrays: read without its code, in the layout of torchmd-net 3.1.

A Lightning checkpoint holds `hyper_parameters` and a `state_dict`; torch reads it with `weights_only`, so nothing in it
is executed. An `.npz` export has the state dict under `state/<key>`, the rest as JSON text under `config`, and under
`reference/<name>/` molecules with what torch computed for them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.weights.torch_state import read_export, read_torch, state_of

FORMAT = "torchmd-net export"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Reference:
    """A molecule and what torch computed for it in float64, in the units of the checkpoint; `charge` in e."""

    numbers: np.ndarray
    positions: np.ndarray
    charge: float
    energy: float
    forces: np.ndarray


@dataclasses.dataclass(frozen=True)
class TorchmdNetExport:
    """`hyper_parameters` in JSON types; `state`: the state dict without the prefix `model.`; named `references`."""

    hyper_parameters: Mapping[str, Any]
    state: Mapping[str, np.ndarray]
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)


def read_torchmd_net(path: str | Path) -> TorchmdNetExport:
    """A Lightning checkpoint (needs torch, extra `interop`), or an `.npz` export."""
    path = Path(path)
    if not path.is_file():
        raise located("there is no such file", file=path)
    return _read_npz(path) if path.suffix == ".npz" else _read_checkpoint(path)


def _read_npz(path: Path) -> TorchmdNetExport:
    config, arrays = read_export(path, "torchmd-net", FORMAT, FORMAT_VERSION)
    state = state_of(arrays)
    names = sorted({key.split("/")[1] for key in arrays if key.startswith("reference/")})
    references = {
        name: Reference(
            numbers=arrays[f"reference/{name}/numbers"],
            positions=arrays[f"reference/{name}/positions"],
            charge=float(arrays[f"reference/{name}/charge"]),
            energy=float(arrays[f"reference/{name}/energy"]),
            forces=arrays[f"reference/{name}/forces"],
        )
        for name in names
    }
    hyper_parameters = config["hyper_parameters"]
    return TorchmdNetExport(hyper_parameters, current_layout(hyper_parameters, state), references)


def _read_checkpoint(path: Path) -> TorchmdNetExport:
    checkpoint = read_torch(
        path,
        "a checkpoint of torchmd-net; one with other objects in it has to be saved again with its entries "
        "hyper_parameters and state_dict alone",
    )
    wanted = ("hyper_parameters", "state_dict")
    if not isinstance(checkpoint, Mapping) or not all(key in checkpoint for key in wanted):
        raise located("is not a checkpoint of torchmd-net", file=path, expected=f"entries {' and '.join(wanted)}")
    hyper_parameters = dict(checkpoint["hyper_parameters"])
    state = {key: value.cpu().numpy() for key, value in checkpoint["state_dict"].items()}
    return TorchmdNetExport(hyper_parameters, current_layout(hyper_parameters, state))


def current_layout(hyper_parameters: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with the names of torchmd-net 3.1, and the last layers of `linears_scalar` ordered [3, F].

    Before 3.0 they were ordered [F, 3]; such checkpoints have the hyper-parameter `check_errors`.
    """
    old = r"output_model\.output_network\.([02])\.(weight|bias)"
    renamed = {
        re.sub(old, r"output_model.output_network.layers.\1.\2", key.removeprefix("model.")): value
        for key, value in state.items()
    }
    if "check_errors" not in hyper_parameters:
        return renamed
    last = re.compile(r"representation_model\.(tensor_embedding\.linears_scalar\.1|layers\.\d+\.linears_scalar\.2)\..*")
    return {key: _three_first(key, value) if last.fullmatch(key) else value for key, value in renamed.items()}


def _three_first(key: str, value: np.ndarray) -> np.ndarray:
    if value.shape[0] % 3:
        raise EquijaxError(f"state dict: {key} has shape {value.shape}; expected a multiple of three rows")
    return value.reshape(-1, 3, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
