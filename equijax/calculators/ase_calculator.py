"""The ASE calculator: one compiled function along a trajectory, exact neighbour lists with a skin."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from equijax.calculators.skin_list import SkinList
from equijax.dispersion import dispersion_of
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph, batch
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.models.target_labels import cartesian_value
from equijax.potential.derivatives import Uncertainty
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.parts import check_parts, predict_in_parts
from equijax.potential.potential import UNCERTAINTIES, Potential
from equijax.potential.prediction import has_stress, unbatch_target
from equijax.potential.uncertainty import ADD_UNCERTAINTIES
from equijax.precision import DType
from equijax.structure import Structure

FORCE_NOISE = 1e-3
"""eV/Å; a relaxation in float32 that gets below this is warned that rounding starts to matter."""


class EquijaxCalculator(Calculator):
    """Energies, forces and stresses of a potential for ASE.

    `potential`: a Potential or the path of a model file. `dtype`: float32 or float64; default is the
    precision the model was trained in. Use float64 for geometry optimisations to tight thresholds, finite
    differences and phonons; float32 is right for MD, because positions, neighbour vectors and energy sums are
    float64 either way. `skin` (Å): extra range of the neighbour search, so that it is repeated only every few
    dozen steps; results do not depend on it. `padding`, `max_shapes`: how array shapes are rounded up and how
    many compiled shapes are kept; `compile_count` says how many compilations there were. `parts`: evaluate the
    structure in so many parts, one after another, where it does not fit in memory at once, or with as many `devices`
    one on each of them at the same time; not for targets and uncertainties.

    Properties: `energy`, `free_energy` (eV, the same number), `energies` [N], `forces` [N, 3] eV/Å and, for periodic
    systems with a volume, `stress` [6] eV/Å³ in ASE's Voigt order xx, yy, zz, yz, xz, xy. Targets of the model are in
    `results` under their names, as `Potential.predict` gives them; `dipole` [3] is a property of ASE, in the unit of
    the labels (ASE's own is e Å). Potentials with uncertainties have `energy_uncertainty` (eV), and
    `forces_uncertainty` [N, 3] eV/Å and `stress_uncertainty` [6] of every component: a committee has them in `results`
    after every calculation, a model with those of the last layer only the energy's; it computes the others when they
    are asked for, `calculator.get_property("forces_uncertainty", atoms)`. A model that was trained on targets alone has
    no other properties. Errors are EquijaxError: unknown elements, positions that are not finite, atoms in one place or
    flown away, and results that are not finite, naming the atom.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        potential: Potential | str | Path,
        dtype: DType | None = None,
        skin: float = 0.5,
        padding: PaddingPolicy | None = None,
        max_shapes: int = 16,
        parts: int = 1,
        devices: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(potential, str | Path):
            from equijax.weights.model_file import load_potential

            potential = load_potential(potential)
        if not isinstance(potential, Potential):
            raise EquijaxError(f"a calculator needs a potential; a {type(potential).__name__} has no energies")
        self.potential: Potential = potential
        if dtype not in (None, "float32", "float64"):
            raise EquijaxError(f"dtype is {dtype!r}; expected float32 or float64")
        self.dtype: DType = dtype or self.potential.dtype
        self._dispersion = None if self.potential.dispersion is None else self.potential.dispersion.calculator()
        if self._dispersion is not None:
            # The dispersion has no energies of atoms.
            self.implemented_properties = [n for n in self.implemented_properties if n != "energies"]
        if not self.potential.has_energy:
            self.implemented_properties = []
        if parts == 1:
            self.implemented_properties = [*self.implemented_properties, *self.potential.uncertainties]
        if self.potential.has_dipole:
            self.implemented_properties = [*self.implemented_properties, "dipole"]
        check_parts(parts, devices, tuple(self.potential.targets))
        self.parts, self.devices = parts, devices
        self._evaluator = Evaluator(self.potential, self.dtype, padding or PaddingPolicy(), max_shapes)
        self._list = SkinList(self.potential.cutoff, skin, self.potential.elements)
        self._relaxation_steps = 0
        self._warned = False

    @property
    def compile_count(self) -> int:
        """Compilations so far: one along a trajectory, a handful for any number of different systems."""
        return self._evaluator.compile_count

    @property
    def list_rebuilds(self) -> int:
        """Neighbour searches so far."""
        return self._list.rebuilds

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Padded shapes (atoms, neighbours, structures) in use; a restart file stores them."""
        return [(s.nodes, s.neighbors, s.graphs) for s in self._evaluator.shapes.known]

    def remember_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Use these shapes first, so that a continued run repeats the bits of the run before it."""
        self._evaluator.shapes.remember(Capacity(*(int(size) for size in shape)) for shape in shapes)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        if name in UNCERTAINTIES and not self.potential.uncertainties:
            raise PropertyNotImplementedError(f"{name}: this model has no uncertainties; fix: {ADD_UNCERTAINTIES}")
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = Structure.from_ase(self.atoms)
        if len(structure) == 0:
            raise EquijaxError("the structure has no atoms")
        if not self.potential.has_energy and set(properties) - set(self.implemented_properties):
            raise PropertyNotImplementedError(
                f"{', '.join(properties)}: this model was trained on {', '.join(self.potential.trained or ())} alone"
            )
        if "stress" in properties and not self.potential.is_conservative:
            raise PropertyNotImplementedError("stress: this model predicts forces directly, it has no stress")
        if {"stress", "stress_uncertainty"} & set(properties) and not has_stress(structure):
            raise PropertyNotImplementedError(
                "stress: the system is not periodic or its cell has no volume, so a stress is not defined"
            )
        graph, vectors = self._list.edges(structure)
        spare = spare_neighbors(structure, graph.max_neighbors)
        if not self.potential.has_energy:
            self.results = self._targets(
                self._evaluator.node_outputs(*self._padded(graph, vectors, spare)), graph, structure
            )
            return
        if self.parts > 1:
            output = predict_in_parts(self._evaluator, graph, vectors, self.parts, self.devices, spare_neighbors=spare)
        else:
            uncertain = bool({"forces_uncertainty", "stress_uncertainty"} & set(properties))
            output = self._evaluator.derivatives(*self._padded(graph, vectors, spare), uncertain)
        size = graph.num_nodes
        interaction = output.node_energies[:size].astype(np.float64)
        forces = output.forces[:size].astype(np.float64)
        self._check_finite(structure, interaction, forces)
        energies = self.potential.isolated_energies(structure.atomic_numbers) + interaction
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        self.results |= self._targets(output, graph, structure)
        if output.stress is not None and has_stress(structure):
            self.results["stress"] = full_3x3_to_voigt_6_stress(output.stress[0].astype(np.float64))
        if output.uncertainty is not None and self.potential.uncertainties:
            self._add_uncertainties(output.uncertainty, size, has_stress(structure))
        if self._dispersion is not None:
            self._add_dispersion(structure)
        if self.dtype == "float32" and not self._warned:
            self._warn_about_float32(forces, system_changes, self.atoms.has("momenta"))

    def _padded(self, graph: StructureGraph, vectors: np.ndarray, spare: int) -> tuple[AtomGraph, np.ndarray]:
        if any(graph.pbc) and graph.degree.min() == graph.max_neighbors:
            spare *= 2  # a lattice at rest does not show how far motion takes the number of neighbours
        capacity = self._evaluator.capacity(
            graph.num_nodes, graph.max_neighbors, spare_neighbors=spare, fixed_atoms=True
        )
        padded = batch([graph], capacity, self.dtype)
        return padded, pad_vectors(padded, graph.receivers, graph.slots, vectors)

    def _add_uncertainties(self, found: Uncertainty, size: int, stress: bool) -> None:
        self.results["energy_uncertainty"] = float(found.energy[0])
        if found.forces is not None:
            self.results["forces_uncertainty"] = found.forces[:size].astype(np.float64)
        if found.stress is not None and stress:
            components = found.stress[0].astype(np.float64)
            self.results["stress_uncertainty"] = full_3x3_to_voigt_6_stress(components)

    def _add_dispersion(self, structure: Structure) -> None:
        parts = dispersion_of(self._dispersion, structure)
        self.results["energy"] += parts["energy"]
        self.results["free_energy"] = self.results["energy"]
        self.results["forces"] = self.results["forces"] + parts["forces"]
        self.results.pop("energies")
        if "stress" in self.results:
            self.results["stress"] = self.results["stress"] + full_3x3_to_voigt_6_stress(parts["stress"])

    def _targets(self, output: Any, graph: StructureGraph, structure: Structure) -> dict[str, np.ndarray]:
        found = {}
        for name, config in self.potential.targets.items():
            (value,) = unbatch_target(config, name, output.targets[name], [graph])
            if not np.isfinite(value).all():
                raise EquijaxError(f"{structure.where}: {name} is not finite; is the geometry reasonable?")
            found[name] = cartesian_value(config, value.astype(np.float64))
        return found

    def _check_finite(self, structure: Structure, energies: np.ndarray, forces: np.ndarray) -> None:
        bad = ~(np.isfinite(energies) & np.isfinite(forces).all(axis=1))
        if bad.any():
            atom = int(np.flatnonzero(bad)[0])
            symbol = chemical_symbols[structure.atomic_numbers[atom]]
            raise EquijaxError(
                f"{structure.where}: the model gives energy {energies[atom]} and force "
                f"{forces[atom].tolist()} for atom {atom} ({symbol}) at "
                f"{structure.positions[atom].tolist()}; is the geometry reasonable?"
            )

    def _warn_about_float32(self, forces: np.ndarray, system_changes: Sequence[str], has_momenta: bool) -> None:
        """Once, when atoms without momenta have been moved several times and the forces get very small."""
        if "numbers" in system_changes or has_momenta:
            self._relaxation_steps = 0
            return
        self._relaxation_steps += "positions" in system_changes
        if self._relaxation_steps >= 3 and np.abs(forces).max() < FORCE_NOISE:
            self._warned = True
            warnings.warn(
                f"geometry optimisation in float32 with forces below {FORCE_NOISE} eV/Å, where rounding "
                "starts to matter; use EquijaxCalculator(..., dtype='float64')",
                EquijaxWarning,
                stacklevel=2,
            )


def spare_neighbors(structure: Structure, max_neighbors: int) -> int:
    """Room for atoms that come within the cutoff as the structure moves, so that a shape lasts a trajectory."""
    spare = 1 + max_neighbors // 12
    return spare if any(structure.pbc) else min(spare, max(len(structure) - 1 - max_neighbors, 0))
