"""The model file: one `.safetensors` that holds the parameters and, as JSON, everything needed to use them.

Layout: the tensors under their path in the parameter tree ("interactions_0/linear_up/0e"), and two metadata
entries: "equijax_model", a JSON object, and "sha256" over that JSON and all tensors. No part of a model file
is ever executed: the architecture is a name in the literal table `equijax.models.MODELS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, did_you_mean, located
from equijax.potential.last_layer import LastLayer
from equijax.potential.potential import Potential
from equijax.potential.uncertainty import Calibration
from equijax.weights.atomic_file import write_atomically

FORMAT_VERSION = 1
UNITS = {"energy": "eV", "length": "angstrom"}

MAX_HEADER_BYTES = 10_000_000
MAX_INTEGER = 100_000
"""The largest integer that a config in a model file may hold, also inside text such as irreps."""

LAST_LAYER = "last_layer_uncertainty"
"""Where the matrix of the last layer's features lies among the tensors; no module has this name."""

DTYPES = {"F32": "float32", "F64": "float64"}

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format version -> the pure function that turns its JSON into that of the next version."""


def save_potential(potential: Potential, path: str | Path) -> Path:
    """Write `potential` to `path`, which ends in .safetensors. The file is complete or not there at all."""
    tensors = dict(potential.params)
    if potential.last_layer is not None:
        tensors[LAST_LAYER] = {"gram": np.asarray(potential.last_layer.gram, np.float64)}
    return write_model_file(Path(path), describe(potential), tensors)


def write_model_file(path: Path, description: Mapping[str, Any], params: Mapping[str, Any]) -> Path:
    """Write a description and parameters, sealed with their checksum."""
    from safetensors.numpy import save

    if path.suffix != ".safetensors":
        raise located("is not a name for a model file", file=path, expected="a name ending in .safetensors")
    tensors = flatten_parameters(params)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise located("is not finite, so the model is not written", file=path, key=name)
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    metadata = {"equijax_model": text, "sha256": digest(text, tensors)}
    return write_atomically(path, save(tensors, metadata=metadata))


def load_potential(path: str | Path) -> Potential:
    """Read a model file. The checksum, the sizes and the names are verified before a parameter is used.

    Raises EquijaxError, naming the file and what is wrong, for any other kind of file (pickles and torch
    files are not opened), a truncated or changed file, an unknown architecture, or a newer format version.
    """
    path = Path(path)
    return _build(*read_model_file(path), path)


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description, in today's format, and the parameters of a model file, sound and finite."""
    header = read_header(path)
    metadata = _metadata(header, path)
    text = metadata["equijax_model"]
    tensors = _read_tensors(path, {name: entry for name, entry in header.items() if name != "__metadata__"})
    if digest(text, tensors) != metadata.get("sha256"):
        raise located("the checksum does not match: the file was damaged or changed", file=path)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise located("is not finite", file=path, key=name)
    return upgrade(_parse_json(text, path), path), tensors


def stored_model_config(path: str | Path) -> Any:
    """The config of the model in a file, without its parameters, whose checksum is not verified here."""
    path = Path(path)
    description = upgrade(_parse_json(_metadata(read_header(path), path)["equijax_model"], path), path)
    check_integers(description.get("model"), path)
    return model_config(description.get("model", {}), path)


def model_kind(path: str | Path) -> str:
    """`potential`, or what a file of another kind of model says it is."""
    path = Path(path)
    return str(_parse_json(_metadata(read_header(path), path)["equijax_model"], path).get("kind", "potential"))


def _metadata(header: Mapping[str, Any], path: Path) -> dict[str, Any]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or "equijax_model" not in metadata:
        raise located(
            "is a safetensors file but not an equijax model",
            file=path,
            expected="the metadata entry equijax_model",
        )
    return metadata


def describe(potential: Potential) -> dict[str, Any]:
    """The JSON of a model file: whatever is needed to use the parameters, with its names and units."""
    from ase.data import chemical_symbols

    from equijax.models.products import with_backend

    statistics = potential.statistics
    symbols = [chemical_symbols[z] for z in potential.elements]
    return {
        "format_version": FORMAT_VERSION,
        # What evaluates products is a choice of each run, and a file is read where the kernels may not be installed.
        "model": with_backend(potential.model_config, "xla").model_dump(mode="json"),
        "statistics": {
            field.name: float(getattr(statistics, field.name))
            for field in dataclasses.fields(statistics)
            if field.name != "atomic_numbers"
        },
        "elements": symbols,
        "targets": {
            name: {
                "config": config.model_dump(mode="json"),
                "statistics": potential.target_statistics[name].to_json(),
            }
            for name, config in potential.targets.items()
        },
        "trained": None if potential.trained is None else list(potential.trained),
        "atomic_energies": {s: float(potential.atomic_energies[z]) for s, z in zip(symbols, potential.elements)},
        "units": UNITS,
        "cutoff": float(potential.cutoff),
        "dtype": potential.dtype,
        "versions": versions(),
        "metadata": dict(potential.metadata),
        "committee": potential.committee,
        "calibration": None if potential.calibration is None else dataclasses.asdict(potential.calibration),
        "regulariser": None if potential.last_layer is None else float(potential.last_layer.regulariser),
    }


def digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over the JSON and the name, type, shape and bytes of every tensor in the order of names."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        sha.update(tensor.data)
    return sha.hexdigest()


def flatten_parameters(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """{"a": {"b": tensor}} -> {"a/b": tensor}."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if "/" in name:
            raise EquijaxError(f"parameter name {name!r} contains '/'")
        if isinstance(value, Mapping):
            flat |= flatten_parameters(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value, order="C")  # ascontiguousarray would give scalars an axis
    return flat


def nest_parameters(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"a/b": tensor} -> {"a": {"b": tensor}}."""
    nested: dict[str, Any] = {}
    for path, tensor in flat.items():
        *parents, name = path.split("/")
        branch = nested
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise EquijaxError(f"parameter {path!r} lies inside another parameter")
        if name in branch:
            raise EquijaxError(f"parameter {path!r} is there twice")
        branch[name] = tensor
    return nested


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, after checks of its suffix, first bytes and size."""
    if not path.is_file():
        raise located("there is no such model file", file=path)
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        kind = None if stream.read(1) == b"{" else _foreign_kind(start)
        if kind:
            raise located(
                f"is {kind}, which can run code when it is read, and is not opened",
                file=path,
                expected="an equijax model (.safetensors)",
                fix="`equijax convert` reads models of other programs",
            )
        if path.suffix != ".safetensors":
            raise located(f"has the suffix {path.suffix!r}", file=path, expected="an equijax model (.safetensors)")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise located("is truncated or not a safetensors file", file=path)
        if length > MAX_HEADER_BYTES:
            raise located(f"has a header of {length} bytes; the limit is {MAX_HEADER_BYTES}", file=path)
        stream.seek(8)
        return _parse_json(stream.read(length), path)


def upgrade(description: dict[str, Any], path: Path) -> dict[str, Any]:
    """The description in today's format; refuses versions from the future."""
    found = description.get("format_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise located(f"is {found!r}", file=path, key="format_version", expected="a positive integer")
    if found > FORMAT_VERSION:
        raise located(
            f"is {found}; this equijax reads versions up to {FORMAT_VERSION}",
            file=path,
            key="format_version",
            fix="install a newer equijax",
        )
    for number in range(found, FORMAT_VERSION):
        description = UPGRADES[number](description)
    return description


def _build(description: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> Potential:
    from ase.data import atomic_numbers

    from equijax.models.contract import ModelStatistics

    check_integers(description.get("model"), path)
    try:
        config = model_config(description["model"], path)
        if description["units"] != UNITS:
            raise located(f"is {description['units']}", file=path, key="units", expected=str(UNITS))
        elements = tuple(atomic_numbers[symbol] for symbol in description["elements"])
        atomic_energies = {
            atomic_numbers[symbol]: float(energy) for symbol, energy in description["atomic_energies"].items()
        }
        statistics = ModelStatistics(
            atomic_numbers=elements,
            **{key: float(value) for key, value in description["statistics"].items()},
        )
        dtype, metadata = description["dtype"], description["metadata"]
        # Files from before there were targets have neither entry.
        targets, target_statistics = _targets(description.get("targets", {}), path)
        trained = description.get("trained")
        # Files from before there were uncertainties have none of these entries.
        committee = description.get("committee")
        if not (committee is None or (isinstance(committee, int) and not isinstance(committee, bool))):
            raise located(f"is {committee!r}", file=path, key="committee", expected="a whole number or null")
        last_layer, tensors = _last_layer(description, tensors, path)
        factors = description.get("calibration")
        calibration = None if factors is None else Calibration(**{k: float(v) for k, v in factors.items()})
    except EquijaxError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise located(f"{error!r}", file=path, key="equijax_model", expected="a complete description") from error
    try:
        potential = Potential(
            model_config=config,
            statistics=statistics,
            atomic_energies=atomic_energies,
            params=nest_parameters(tensors),
            dtype=dtype,
            metadata=metadata,
            targets=targets,
            target_statistics=target_statistics,
            trained=None if trained is None else tuple(str(name) for name in trained),
            committee=committee,
            last_layer=last_layer,
            calibration=calibration,
        )
        potential.check_parameters()
    except EquijaxError as error:
        raise located(str(error), file=path) from error
    if abs(potential.cutoff - description["cutoff"]) > 1e-12:
        raise located(f"is {description['cutoff']}, the model has {potential.cutoff}", file=path, key="cutoff")
    return potential


def model_config(section: Any, path: Path) -> Any:
    """The config of a potential in the description of a model file."""
    from equijax.models import HAMILTONIAN_MODELS, MODELS

    name = section.get("name")
    if name in HAMILTONIAN_MODELS:
        raise located(
            f"{name} predicts Hamiltonians, and this needs a potential with energies and forces",
            file=path,
            key="model.name",
            fix="`equijax predict`, `evaluate` and `scf` take this model",
        )
    return config_of(MODELS, section, path)


def _last_layer(
    description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path
) -> tuple[LastLayer | None, dict[str, np.ndarray]]:
    """What makes uncertainties of the last layer, and the tensors without it."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{LAST_LAYER}/")}
    others = {name: tensor for name, tensor in tensors.items() if name not in own}
    regulariser = description.get("regulariser")
    if (regulariser is None) != (not own) or own.keys() - {f"{LAST_LAYER}/gram"}:
        raise located(
            f"has the tensors {', '.join(own) or 'none'} and the regulariser {regulariser}",
            file=path,
            key=LAST_LAYER,
            expected=f"{LAST_LAYER}/gram with a regulariser, or neither",
        )
    if regulariser is None:
        return None, others
    return LastLayer(own[f"{LAST_LAYER}/gram"], float(regulariser)), others


def _targets(section: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs and statistics of the targets by name."""
    if not section:
        return {}, {}
    from equijax.models.targets import TargetConfig, TargetStatistics

    check_integers(section, path, "targets")
    configs = {name: validated(TargetConfig, part["config"], f"targets.{name}", path) for name, part in section.items()}
    return configs, {name: TargetStatistics.from_json(part["statistics"]) for name, part in section.items()}


def config_of(table: Mapping[str, Any], section: Any, path: Path) -> Any:
    """A config of one of the architectures of a literal table."""
    name = section.get("name")
    if name not in table:
        hint = did_you_mean(str(name), table)
        raise located(f"{name!r} is not an architecture of this equijax", file=path, key="model.name", fix=hint)
    return validated(table[name], section, "model", path)


def validated(kind: Any, section: Any, key: str, path: Path) -> Any:
    """A section of a description as the record that it is; EquijaxError with the key of what is wrong."""
    import pydantic

    try:
        return kind.model_validate(section)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise located(first["msg"], file=path, key=".".join([key, *(str(part) for part in first["loc"])])) from error


def check_integers(value: Any, path: Path, key: str = "model") -> None:
    """Refuse absurd sizes before anything is built from them."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            check_integers(part, path, f"{key}.{name}")
    elif isinstance(value, list):
        for part in value:
            check_integers(part, path, key)
    elif not isinstance(value, bool):
        for number in re.findall(r"\d+", str(value)) if isinstance(value, str | int) else []:
            if len(number) > 6 or int(number) > MAX_INTEGER:
                raise located(f"holds {number[:20]}; the limit is {MAX_INTEGER}", file=path, key=key)


def _read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    for name, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if kind not in DTYPES:
            raise located(f"has type {kind}", file=path, key=name, expected=" or ".join(DTYPES))
    try:
        # The library compares every offset and shape with the size of the file before it allocates.
        with safe_open(path, framework="np") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise located(f"is damaged: {error}", file=path) from error


def _parse_json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise located("is damaged: its header is not JSON", file=path) from error
    if not isinstance(parsed, dict):
        raise located("is damaged: its header is not a JSON object", file=path)
    return parsed


def _foreign_kind(start: bytes) -> str | None:
    """What the first bytes say about files that are sometimes taken for models."""
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive (torch or npz)"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file"
    return None


def versions() -> dict[str, str]:
    """Of what made a model file."""
    found = {"python": platform.python_version()}
    for package in ("equijax", "jax", "flax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
