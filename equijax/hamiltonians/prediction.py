"""Prediction of Hamiltonians and of what follows from them, in batches of similar molecules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.errors import located
from equijax.graph.batching import StructureGraph, structure_graph
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals, occupied_orbitals
from equijax.orbitals.blocks import assemble
from equijax.potential.prediction import similar_batches
from equijax.structure import Structure

if TYPE_CHECKING:
    from equijax.hamiltonians.evaluator import BlockEvaluator
    from equijax.hamiltonians.model import HamiltonianModel

Result = dict[str, Any]

_OF_ORBITALS = {"orbital_energies", "orbital_coefficients", "density", "homo", "lumo", "gap", "dipole"}


def predict(
    model: HamiltonianModel, structures: Sequence[Structure], properties: tuple[str, ...], evaluator: BlockEvaluator
) -> list[Result]:
    """One dict per structure with the properties asked for, in their order; see `HamiltonianModel.predict`."""
    for structure in structures:
        refuse(model, structure)
    graphs = [structure_graph(structure, model.cutoff, model.elements) for structure in structures]
    corrections = corrections_of(model, structures, graphs, evaluator)
    return [
        _properties(model, structure, correction, properties)
        for structure, correction in zip(structures, corrections, strict=True)
    ]


def refuse(model: HamiltonianModel, structure: Structure) -> None:
    """Raise EquijaxError for what no Hamiltonian can be predicted for."""
    place: dict[str, Any] = {"file": structure.file, "frame": structure.frame}
    if len(structure) == 0:
        raise located("has no atoms", **place)
    if any(structure.pbc):
        raise located(
            f"is {structure.pbc}, and Hamiltonians are predicted for molecules only", **place, key="pbc",
            fix="set pbc to false if the structure is a molecule",
        )  # fmt: skip
    _same_settings(structure, "functional", model.functional)
    _same_settings(structure, "basis", model.layout.basis)


def _same_settings(structure: Structure, key: str, expected: str) -> None:
    """The matrices that a structure comes with must be of the model's level of theory."""
    found = structure.info.get(key)
    if "initial_hamiltonian" in structure.labels and found is not None and str(found).lower() != expected.lower():
        raise located(
            f"is {found}, and the model was trained on {expected}: its H0 is that of another method",
            file=structure.file,
            frame=structure.frame,
            key=key,
        )


def corrections_of(
    model: HamiltonianModel,
    structures: Sequence[Structure],
    graphs: Sequence[StructureGraph],
    evaluator: BlockEvaluator,
) -> list[np.ndarray]:
    """dH of every structure, [nao, nao] float64."""
    corrections: list[np.ndarray] = [np.zeros((0, 0))] * len(structures)
    for indices in similar_batches(graphs):
        for i, blocks in zip(indices, evaluator.blocks([graphs[i] for i in indices]), strict=True):
            atoms, pairs = (np.asarray(part, np.float64) for part in (blocks.atoms, blocks.pairs))
            corrections[i] = assemble(atoms, pairs, structures[i].atomic_numbers, model.layout)
    return corrections


def _properties(
    model: HamiltonianModel, structure: Structure, correction: np.ndarray, properties: tuple[str, ...]
) -> Result:
    wanted = set(properties)
    found: Result = {"correction": correction}
    if wanted & (_OF_ORBITALS | {"hamiltonian", "initial_hamiltonian"}):
        found["initial_hamiltonian"] = _matrix(model, structure, "initial_hamiltonian")
        found["hamiltonian"] = found["initial_hamiltonian"] + correction
    if wanted & (_OF_ORBITALS | {"overlap"}):
        found["overlap"] = _matrix(model, structure, "overlap")
    if wanted & _OF_ORBITALS:
        orbitals = molecular_orbitals(found["hamiltonian"], found["overlap"], occupied_orbitals(structure))
        found |= {
            "orbital_energies": orbitals.energies,
            "orbital_coefficients": orbitals.coefficients,
            "density": orbitals.density,
            "homo": orbitals.homo,
            "lumo": orbitals.lumo,
            "gap": orbitals.gap,
        }
    if "dipole" in wanted:
        from equijax.hamiltonians import pyscf_bridge

        found["dipole"] = pyscf_bridge.dipole(structure, model.layout.basis, found["density"])
    return {name: found[name] for name in properties}


def _matrix(model: HamiltonianModel, structure: Structure, name: str) -> np.ndarray:
    given = structure.labels.get(name)
    if given is not None:
        return np.asarray(given, np.float64)
    from equijax.hamiltonians import pyscf_bridge

    if name == "overlap":
        return pyscf_bridge.overlap(structure, model.layout.basis)
    return pyscf_bridge.initial_hamiltonian(structure, model.layout.basis, model.functional)
