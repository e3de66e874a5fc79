"""HamiltonianModel: a trained model of Kohn-Sham matrices, ready to predict."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.errors import EquijaxError, did_you_mean
from equijax.orbitals.layout import LAYOUTS, OrbitalLayout
from equijax.potential.potential import as_structure, compare_parameters, count_parameters, two_atom_graph
from equijax.precision import DType, precision

if TYPE_CHECKING:
    from equijax.graph.padding import PaddingPolicy
    from equijax.hamiltonians.evaluator import BlockEvaluator
    from equijax.models.hamiltonian_contract import HamiltonianStatistics, KeptPaths

PROPERTIES = (
    "hamiltonian",
    "correction",
    "initial_hamiltonian",
    "overlap",
    "orbital_energies",
    "orbital_coefficients",
    "density",
    "homo",
    "lumo",
    "gap",
    "dipole",
)


@dataclasses.dataclass(frozen=True, eq=False)
class HamiltonianModel:
    """H = H0 + dH: the Kohn-Sham matrix of the starting density (`minao`), by PySCF, plus what the model predicts.

    `model_config` builds the flax module from `statistics` and `kept_paths` (those of the fixed phase of a sparse gate,
    else None); `functional` is that of the training data; `params` is a nested dict of numpy arrays; `dtype` is the
    precision it was trained in and the default of `predict`; `metadata` is JSON that travels in the model file.
    """

    model_config: Any
    statistics: HamiltonianStatistics
    functional: str
    params: Mapping[str, Any]
    kept_paths: KeptPaths | None = None
    dtype: DType = "float32"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise EquijaxError(f"dtype is {self.dtype!r}; expected float32 or float64")

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows, ascending."""
        return tuple(self.statistics.atomic_numbers)

    @property
    def cutoff(self) -> float:
        """Å; edges of the graph are shorter than this. Blocks are predicted for all pairs."""
        return float(self.model_config.cutoff)

    @property
    def layout(self) -> OrbitalLayout:
        """The orbitals of every element."""
        return LAYOUTS[self.statistics.basis]

    @functools.cached_property
    def module(self) -> Any:
        """The flax module; `module.apply({"params": params}, graph, vectors, pairs, pair_vectors)` gives blocks."""
        return self.model_config.build(self.statistics, self.kept_paths)

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.params)

    def __repr__(self) -> str:
        from ase.data import chemical_symbols

        symbols = ", ".join(chemical_symbols[z] for z in self.elements)
        return (
            f"HamiltonianModel({self.model_config.name}, {self.functional}/{self.layout.basis}, elements: {symbols}, "
            f"cutoff: {self.cutoff:g} Å, {self.num_parameters} parameters, {self.dtype})"
        )

    def check_parameters(self) -> None:
        """Raise EquijaxError when names or shapes of `params` are not those of the model; only traces it."""
        compare_parameters(self.params, parameter_shapes(self.module))

    def evaluator(self, dtype: DType | None = None, padding: PaddingPolicy | None = None) -> BlockEvaluator:
        """The compiled functions of this model in one precision, shared by all `predict` calls."""
        from equijax.graph.padding import PaddingPolicy
        from equijax.hamiltonians.evaluator import BlockEvaluator

        key = (dtype or self.dtype, padding or PaddingPolicy())
        if key not in self._evaluators:
            self._evaluators[key] = BlockEvaluator(self, *key)
        return self._evaluators[key]

    @functools.cached_property
    def _evaluators(self) -> dict[Any, BlockEvaluator]:
        return {}

    @property
    def compile_count(self) -> int:
        """Compilations so far, in every precision."""
        return sum(evaluator.compile_count for evaluator in self._evaluators.values())

    def predict(
        self,
        structures: Any,
        properties: Sequence[str] = ("hamiltonian",),
        dtype: DType | None = None,
        padding: PaddingPolicy | None = None,
    ) -> Any:
        """Properties of a Structure or an ASE Atoms (a dict), or of a list of them (a list of dicts).

        | property | shape | unit |
        |---|---|---|
        | hamiltonian | [nao, nao] | Hartree; H0 + dH |
        | correction | [nao, nao] | Hartree; dH, what the model predicts |
        | initial_hamiltonian, overlap | [nao, nao] | Hartree, none |
        | orbital_energies | [nao] | Hartree, ascending |
        | orbital_coefficients | [nao, nao] | a column per orbital |
        | density | [nao, nao] | P = 2 C_occ C_occ^T |
        | homo, lumo, gap | () | Hartree |
        | dipole | [3] | e Å; needs PySCF |

        Matrices are float64 numpy arrays in the orbital order of `equijax.orbitals`. H0 and S are the structure's own
        labels `initial_hamiltonian` and `overlap` where it has them; otherwise PySCF computes them. Raises EquijaxError
        for unknown properties and elements, for periodic structures, and without PySCF where it is needed.
        """
        from equijax.hamiltonians.prediction import predict

        for name in properties:
            if name not in PROPERTIES:
                known = did_you_mean(name, PROPERTIES)
                raise EquijaxError(f"a model of Hamiltonians has no property {name!r}; {known}")
        single = not isinstance(structures, Sequence) or hasattr(structures, "get_positions")
        frames = [as_structure(item) for item in ([structures] if single else structures)]
        results = predict(self, frames, tuple(properties), self.evaluator(dtype, padding))
        return results[0] if single else results


def parameter_shapes(module: Any) -> Any:
    """The parameter tree of a module with shapes in place of arrays, found by tracing on two atoms."""
    import jax

    from equijax.graph.pair_list import PairList

    graph, vectors = two_atom_graph()
    pairs = PairList(np.array([0, 2]), np.array([1, 2]), np.array([True, False]), np.array([0, 1]))
    between = np.full((2, 3), 1.0, np.float32)
    with precision("float32"):
        return jax.eval_shape(module.init, jax.random.key(0), graph, vectors, pairs, between)["params"]
