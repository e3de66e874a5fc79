"""What a model of Hamiltonians is: a frozen config that builds a module; a graph and its pairs of atoms in, blocks out.

Blocks are those of dH = H - H0 in Hartree, with H0 the Fock matrix of the starting density (`minao`), in the orbital
order of `equijax.orbitals`, padded to the slots of an `OrbitalLayout`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.pair_list import PairList as PairList
from equijax.graph.pair_list import pair_vectors as pair_vectors

KeptPaths = tuple[tuple[int, ...], ...]
"""For every product with a sparse gate, in the order of the model, the positions of the paths that are computed."""

Nested = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class HamiltonianStatistics:
    """Numbers of the training data that a model needs, fixed when it is built and stored with its weights.

    `atomic_numbers`: elements, ascending; the species index is the position. `avg_num_neighbors`: mean in-degree over
    atoms with a neighbour. `basis`: a key of `equijax.orbitals.layout.LAYOUTS`, whose shells u, v index what follows,
    nested tuples in Hartree:

    - `same_atom_shift` [Z][u][v]: mean over the data of tr(dH_uv) / (2l+1) for two shells of one degree l of an atom,
      zero for shells of different degrees; only this, the scalar part, may have a mean.
    - `same_atom_scale` [Z][u][v]: root mean square of the elements of dH_uv minus that shift on its diagonal.
    - `off_atom_scale` [Z][Z][u][v]: the same for dH_uv between two atoms, u of the first, without a shift.
    """

    atomic_numbers: tuple[int, ...]
    avg_num_neighbors: float
    basis: str
    same_atom_shift: Nested
    same_atom_scale: Nested
    off_atom_scale: Nested

    def __post_init__(self) -> None:
        z = len(self.atomic_numbers)
        shells = np.shape(self.same_atom_shift)[-1] if np.ndim(self.same_atom_shift) else 0
        expected = {"same_atom_shift": (z,), "same_atom_scale": (z,), "off_atom_scale": (z, z)}
        for name, leading in expected.items():
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != (*leading, shells, shells):
                raise EquijaxError(
                    f"statistics: {name}: has shape {values.shape}; expected {(*leading, shells, shells)} for "
                    f"{z} elements and {shells} shells"
                )
            if not np.isfinite(values).all():
                raise EquijaxError(f"statistics: {name}: not finite; compute the statistics again from the data")
            exchanged = values.swapaxes(-1, -2) if values.ndim == 3 else values.transpose(1, 0, 3, 2)
            if not np.array_equal(values, exchanged):
                raise EquijaxError(f"statistics: {name}: blocks (u, v) and (v, u) differ; both must be equal")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> HamiltonianStatistics:
        return cls(**{key: _as_tuples(value) for key, value in record.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, (list, tuple)) else value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HamiltonianBlocks:
    """dH in Hartree: `atoms` [N, S, S], symmetric, and `pairs` [P, S, S] with rows of the first and columns of the
    second atom. Slots without an orbital and everything of padded atoms and pairs are exactly zero."""

    atoms: jax.Array
    pairs: jax.Array


class HamiltonianModelConfig(Protocol):
    """A row of `HAMILTONIAN_MODELS`: a frozen pydantic model with these members.

    The tensor-product gate has three phases. Random and adaptive are one module, `build(statistics)`: called with a key
    it draws the paths of that call, without one it takes those of the largest weights. Fixed is another module with
    fewer parameters: with `kept = config.kept_paths(params)` it is `config.build(statistics, kept)`, and its parameters
    are `config.without_paths(params, kept)`.
    """

    @property
    def name(self) -> str: ...

    @property
    def cutoff(self) -> float:
        """Å; radius of the graph of atoms. Pairs have none: every block of a molecule is predicted."""

    def limits(self) -> tuple[str, ...]:
        """What the options of this config cannot express or only approximate, one sentence each."""

    def build(self, statistics: HamiltonianStatistics, kept_paths: KeptPaths | None = None) -> nn.Module:
        """The module: `apply({"params": p}, graph, vectors, pairs, pair_vectors, key)` gives `HamiltonianBlocks`.

        `vectors` [N, K, 3] from `edge_vectors`, `pair_vectors` [P, 3], Å. `key`: of the random phase, else None.
        """

    def kept_paths(self, params: Any) -> KeptPaths:
        """The paths that the adaptive phase computes with these parameters; empty for a model without the gate."""

    def without_paths(self, params: Any, kept_paths: KeptPaths) -> Any:
        """Parameters of the module built with `kept_paths` from those of the module built without.

        Any tree of the same structure, such as the moments of an optimiser, can stand for the parameters.
        """

    def model_dump(self, **options: Any) -> dict[str, Any]: ...
