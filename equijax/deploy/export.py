"""`equijax export`: a folder that runs a potential with jax and numpy alone.

The folder holds one StableHLO program per bucket (atoms, neighbours per atom), the parameters, which every program
takes as arguments, `manifest.json` with a test, and the loader `equijax_exported.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from equijax.checks.structures import random_cluster
from equijax.deploy import equijax_exported
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import BatchBudget, structure_graph
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.graph.shapes import plan_shapes
from equijax.models.products import with_backend
from equijax.potential import derivatives
from equijax.potential.potential import Potential
from equijax.precision import DType, jit, precision
from equijax.structure import Structure
from equijax.weights.atomic_file import sync_directory
from equijax.weights.model_file import flatten_parameters, nest_parameters

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MAX_BUCKETS = 4
SPARE = 1.1
"""Room for more neighbours than the structures of `--like` have, as atoms move."""


def buckets_like(potential: Potential, structures: Sequence[Structure]) -> list[Capacity]:
    """At most four buckets that hold `structures`, with a tenth more neighbours per atom than they have."""
    sizes = []
    for structure in structures:
        graph = structure_graph(structure, potential.cutoff, potential.elements)
        sizes.append((graph.num_nodes, graph.num_edges, int(np.ceil(SPARE * max(graph.max_neighbors, 1)))))
    plan = plan_shapes(
        sizes, BatchBudget(max_structures=1), PaddingPolicy(), shuffle=False, max_shapes=MAX_BUCKETS, epochs=1
    )
    return [Capacity(shape.nodes, shape.neighbors, 2) for shape in plan.capacities]


def bucket(atoms: int, neighbors: int) -> Capacity:
    """The bucket of structures of up to `atoms` atoms, each with up to `neighbors` others within the cutoff."""
    if not (1 <= atoms <= 1_000_000 and 1 <= neighbors <= 10_000):
        raise EquijaxError(f"a bucket of {atoms} atoms x {neighbors} neighbours; expected positive, usual numbers")
    policy = PaddingPolicy()
    rows, slots = (
        -(-n // m) * m for n, m in ((atoms + 1, policy.node_multiple), (neighbors, policy.neighbor_multiple))
    )
    return Capacity(rows, slots, 2)


def program_name(shape: Capacity) -> str:
    """File of a bucket: atoms x neighbours per atom."""
    return f"program_{shape.nodes - 1}x{shape.neighbors}.stablehlo"


def export_potential(
    potential: Potential,
    folder: str | Path,
    buckets: Sequence[Capacity],
    platforms: Sequence[str] = ("cpu",),
    dtype: DType | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the folder, load it as its user will, and repeat its test; the manifest. All or nothing.

    Energies, forces and, of models that have one, the stress are exported; tensor targets are not, with a warning.
    Raises EquijaxError for models without energies, unknown platforms, a folder that is there, and a program that does
    not give the numbers of the potential.
    """
    folder, dtype = Path(folder), dtype or potential.dtype
    _check(potential, folder, platforms, overwrite)
    buckets = sorted(set(buckets), key=lambda b: (b.edges, b.nodes))
    plain = _energy_alone(potential)
    params = {name: leaf.astype(dtype) for name, leaf in flatten_parameters(plain.params).items()}
    outputs = ["energies", "forces", *(["virial"] if potential.is_conservative else [])]
    working = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    working.mkdir(parents=True)
    try:
        programs = [_program(plain.module, params, shape, outputs, platforms, dtype) for shape in buckets]
        manifest = {
            "schema": equijax_exported.SCHEMA,
            "schema_version": equijax_exported.SCHEMA_VERSION,
            "model": potential.model_config.name,
            "units": {"energy": "eV", "length": "angstrom"},
            "atomic_numbers": list(potential.elements),
            "atomic_energies": [float(potential.atomic_energies[z]) for z in potential.elements],
            "cutoff": potential.cutoff,
            "dtype": dtype,
            "outputs": outputs,
            "platforms": list(platforms),
            "jax_version": jax.__version__,
            "calling_convention_version": programs[0].calling_convention_version,
            "uses_global_constants": programs[0].uses_global_constants,
            "parameters": _written(working, "parameters.safetensors", _safetensors(params)),
            "buckets": [
                {"rows": shape.nodes, "neighbors": shape.neighbors}
                | _written(working, program_name(shape), program.mlir_module_serialized)
                for shape, program in zip(buckets, programs)
            ],
            "test": _test(potential, buckets, dtype),
        }
        _written(working, "equijax_exported.py", Path(equijax_exported.__file__).read_bytes())
        _written(working, "manifest.json", json.dumps(manifest, indent=1, allow_nan=False).encode())
        if jax.default_backend() in [{"cuda": "gpu", "rocm": "gpu"}.get(name, name) for name in platforms]:
            try:
                equijax_exported.load(working)
            except equijax_exported.ExportedModelError as error:
                raise located(f"the exported program is wrong: {error}", file=folder) from error
        else:
            text = f"exported for {', '.join(platforms)} and not tested: jax runs on another"
            warnings.warn(text, EquijaxWarning, stacklevel=2)
        _replace(working, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return manifest


def _check(potential: Potential, folder: Path, platforms: Sequence[str], overwrite: bool) -> None:
    if not potential.has_energy:
        raise EquijaxError(f"a model that was trained on {', '.join(potential.trained or ())} alone is not exported")
    potential.refuse_dispersion("export")
    if potential.matmul_precision != "highest":
        raise EquijaxError(f"export: matmul_precision is {potential.matmul_precision}; exported programs take highest")
    if wrong := [name for name in platforms if name not in PLATFORMS]:
        raise located(f"is {', '.join(wrong)}", key="--platforms", expected=f"some of {', '.join(PLATFORMS)}")
    if folder.exists():
        if not overwrite:
            raise located("exists already", file=folder, key="--output", fix="choose another name or add --overwrite")
        if not (folder / "manifest.json").is_file():
            raise located("is not an exported model, and is not replaced", file=folder, key="--output")
    if left_out := [*potential.targets, *potential.uncertainties]:
        names = ", ".join(left_out)
        warnings.warn(f"{names}: not exported; energies and forces are", EquijaxWarning, stacklevel=3)


def _energy_alone(potential: Potential) -> Potential:
    """The potential without target heads and uncertainties; a committee keeps its members, for their mean."""
    params = {name: part for name, part in potential.params.items() if not name.startswith("heads_")}
    plain = dataclasses.replace(
        potential,
        # The kernels of other packages are no part of StableHLO.
        model_config=with_backend(potential.model_config, "xla"),
        params=params,
        targets={},
        target_statistics={},
        last_layer=None,
        calibration=None,
    )
    plain.check_parameters()
    return plain


def _program(
    module: Any,
    params: dict[str, np.ndarray],
    shape: Capacity,
    outputs: Sequence[str],
    platforms: Sequence[str],
    dtype: DType,
) -> jax.export.Exported:
    """StableHLO of (parameters, inputs) -> outputs for one padded shape."""

    def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, jax.Array]:
        vectors, mask = inputs["vectors"], inputs["node_mask"]
        graph = AtomGraph(
            positions=jnp.zeros((shape.nodes, 3), vectors.dtype),
            species=inputs["species"],
            node_graph=jnp.where(mask, 0, 1).astype(jnp.int32),
            node_mask=mask,
            neighbors=inputs["neighbors"],
            neighbor_mask=inputs["neighbor_mask"],
            shifts=jnp.zeros_like(vectors),
            reverse=inputs["reverse"],
            # Of volume 1 Å³: the stress is then the virial, and the division is left to float64 on the host.
            cell=jnp.broadcast_to(jnp.eye(3, dtype=vectors.dtype), (2, 3, 3)),
            graph_mask=jnp.array([True, False]),
        )
        found = derivatives.energy_and_derivatives(module, nest_parameters(params), graph, vectors)
        results = {"energies": found.node_energies, "forces": found.forces}
        return results | ({"virial": found.stress[0]} if found.stress is not None else {})

    inputs = equijax_exported._empty(shape.nodes, shape.neighbors, np.dtype(dtype))
    with precision(dtype):
        exported = jax.export.export(jit(run, keep_unused=True), platforms=tuple(platforms))(params, inputs)
    assert sorted(outputs) == sorted(jax.tree.unflatten(exported.out_tree, exported.out_avals))
    return exported


def _test(potential: Potential, buckets: Sequence[Capacity], dtype: DType) -> dict[str, Any]:
    """A cluster of the model's elements in a skewed cell, and what the potential says about it.

    The cell starts small, so that images count, and grows until a bucket holds the neighbours.
    """
    atoms = max(1, min(12, max(shape.nodes for shape in buckets) - 1))
    cluster = random_cluster(potential.elements, 0, atoms)
    cluster = Structure(cluster.atomic_numbers[:atoms], cluster.positions[:atoms])
    side = float(np.ptp(cluster.positions, axis=0).max()) + 2.0
    while True:
        cell = side * np.array([[1.0, 0, 0], [0.3, 0.9, 0], [-0.2, 0.25, 1.1]])
        structure = Structure(cluster.atomic_numbers, cluster.positions, cell, (True, True, True))
        needed = structure_graph(structure, potential.cutoff, potential.elements).max_neighbors
        if any(atoms < shape.nodes and needed <= shape.neighbors for shape in buckets):
            break
        if side > 4 * potential.cutoff + 50:  # no images any more: fewer atoms
            atoms = max(1, atoms // 2)
            cluster = Structure(cluster.atomic_numbers[:atoms], cluster.positions[:atoms])
            side = 4.0
        side *= 1.15
    names = ("energy", "energies", "forces", *(("stress",) if potential.is_conservative else ()))
    result = potential.predict(structure, names, dtype=dtype)
    interaction = result.pop("energies") - potential.isolated_energies(structure.atomic_numbers)
    result |= {"interaction": interaction, "energy": np.float64(result["energy"])}
    return {
        "atomic_numbers": structure.atomic_numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": cell.tolist(),
        "pbc": [True, True, True],
        "expected": {name: np.asarray(value, np.float64).tolist() for name, value in result.items()},
    }


def _safetensors(params: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(params))


def _written(folder: Path, name: str, data: bytes) -> dict[str, str]:
    (folder / name).write_bytes(data)
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def _replace(working: Path, folder: Path) -> None:
    """Put the finished folder where it belongs; an old one is there until then."""
    old = working.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    working.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    sync_directory(folder.parent)
