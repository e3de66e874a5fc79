"""Potential: a model with its parameters and the energies of its isolated atoms, ready to predict."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.collector import collector_paused
from equijax.dispersion import Dispersion
from equijax.errors import EquijaxError, did_you_mean
from equijax.precision import (
    MIXING_POLICIES,
    DType,
    MatmulPrecision,
    MixingPolicy,
    precision,
    warn_if_emulated,
)
from equijax.structure import Structure

if TYPE_CHECKING:
    from equijax.graph.atom_graph import AtomGraph
    from equijax.graph.padding import PaddingPolicy
    from equijax.models.contract import ModelStatistics
    from equijax.models.targets import TargetConfig, TargetStatistics
    from equijax.ops.clebsch_gordan import Backend
    from equijax.potential.evaluator import Evaluator
    from equijax.potential.last_layer import LastLayer
    from equijax.potential.uncertainty import Calibration

OF_ENERGY = ("energy", "energies", "forces", "stress", "hessian", "elastic_constants")
UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty", "stress_uncertainty")
PROPERTIES = (*OF_ENERGY, "node_features", "born_charges", *UNCERTAINTIES)
"""What `predict` knows beside the targets of a model; no target may have such a name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Potential:
    """Energy of a structure: the sum of its isolated atoms (float64) plus the model's interaction energy.

    `model_config` builds the flax module from `statistics`; `atomic_energies` maps Z to eV; `params` is a
    nested dict of numpy arrays; `dtype` is the precision it was trained in and the default of `predict`;
    `metadata` is JSON that travels in the model file (training data, errors, citation). `targets` are the tensors that
    the model predicts as well, each with its statistics; `trained` names the labels it was trained on, None when that
    is not known. `committee` is the number of members, whose parameters lie along a first axis of every leaf of
    `params`, or None; `last_layer` makes the uncertainties of one model; `calibration` scales those of either.
    `matmul_precision` is how it is evaluated, no part of the model: see `with_execution`.
    """

    model_config: Any
    statistics: ModelStatistics
    atomic_energies: Mapping[int, float]
    params: Mapping[str, Any]
    dtype: DType = "float32"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    targets: Mapping[str, TargetConfig] = dataclasses.field(default_factory=dict)
    target_statistics: Mapping[str, TargetStatistics] = dataclasses.field(default_factory=dict)
    trained: tuple[str, ...] | None = None
    committee: int | None = None
    last_layer: LastLayer | None = None
    calibration: Calibration | None = None
    matmul_precision: MatmulPrecision | MixingPolicy = "highest"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise EquijaxError(f"dtype is {self.dtype!r}; expected float32 or float64")
        missing = [z for z in self.elements if z not in self.atomic_energies]
        if missing:
            raise EquijaxError(f"atomic energies are missing for the elements with Z = {missing}")
        wrong = [z for z in self.elements if not np.isfinite(self.atomic_energies[z])]
        if wrong:
            raise EquijaxError(f"atomic energies are not finite for the elements with Z = {wrong}")
        self._check_uncertainties()

    def _check_uncertainties(self) -> None:
        from equijax.potential.committee import MAX_MEMBERS
        from equijax.potential.last_layer import feature_columns

        if self.committee is not None and not 2 <= self.committee <= MAX_MEMBERS:
            raise EquijaxError(f"committee is {self.committee}; expected 2 to {MAX_MEMBERS} members")
        if self.last_layer is None:
            return
        if self.committee is not None:
            raise EquijaxError("last_layer: a committee has no uncertainties of the last layer; expected one model")
        if self.calibration is None:
            raise EquijaxError("last_layer: needs a calibration, which gives its uncertainties their unit")
        size, expected = len(self.last_layer.gram), len(feature_columns(self.model_config))
        if size != expected:
            raise EquijaxError(f"last_layer: the matrix is for {size} features; this model has {expected}")

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows, ascending."""
        return tuple(self.statistics.atomic_numbers)

    @property
    def cutoff(self) -> float:
        """Å; edges are shorter than this."""
        return float(self.model_config.cutoff)

    @property
    def is_conservative(self) -> bool:
        """Forces are minus the gradient of the energy. False for models that predict forces directly: they have no
        stress and no Hessian, and do not conserve the energy in NVE dynamics."""
        return bool(self.model_config.is_conservative)

    @property
    def has_energy(self) -> bool:
        """Whether energies mean anything: False for a model that was trained on tensor targets alone."""
        return self.trained is None or bool({"energy", "forces", "stress"} & set(self.trained))

    @property
    def dispersion(self) -> Dispersion | None:
        """What is added to the model's energy: it was trained on labels without it, or the user adds it."""
        text = self.metadata.get("dispersion")
        return None if text is None else Dispersion.parse(str(text))

    def with_execution(
        self, backend: Backend | None = None, matmul_precision: MatmulPrecision | None = None
    ) -> Potential:
        """The same model, evaluated otherwise: `backend` of its Clebsch-Gordan products, and how products with trained
        matrices round their inputs (float32 only). Neither is stored in model files; None leaves things as they are.

        Raises EquijaxError for unknown values, for a model without such products, and where the kernels are missing.
        """
        from equijax.models.products import with_backend
        from equijax.ops.clebsch_gordan import BACKENDS

        config = self.model_config
        if backend is not None:
            if backend not in BACKENDS:
                raise EquijaxError(f"backend is {backend!r}; expected {' or '.join(BACKENDS)}")
            config = with_backend(config, backend)
        if matmul_precision is not None:
            if matmul_precision not in MIXING_POLICIES:
                raise EquijaxError(f"matmul_precision is {matmul_precision!r}; expected {', '.join(MIXING_POLICIES)}")
            warn_if_emulated(matmul_precision)
        changed = dataclasses.replace(
            self, model_config=config, matmul_precision=matmul_precision or self.matmul_precision
        )
        changed.check_parameters()  # binds the products, which refuses a backend that is not there
        return changed

    def with_dispersion(self, text: str) -> Potential:
        """The same with a dispersion, such as d3bj:pbe, added to every energy, force and stress."""
        added = Dispersion.parse(text, "--dispersion")
        if self.dispersion is not None and self.dispersion != added:
            raise EquijaxError(f"--dispersion: is {added}; this model has {self.dispersion} already")
        added.calculator()  # refuses what the library does not have
        return dataclasses.replace(self, metadata={**self.metadata, "dispersion": str(added)})

    def refuse_dispersion(self, use: str) -> None:
        """Raise EquijaxError for a use that computes the model's own energy and would leave the dispersion out."""
        if self.dispersion is not None:
            raise EquijaxError(
                f"{use}: the energies of this model are complete only with {self.dispersion}, which is not added "
                "there; `predict`, EquijaxCalculator and `equijax md --engine ase` add it"
            )

    @property
    def has_dipole(self) -> bool:
        """Whether there is a target `dipole` that is a vector per system."""
        config = self.targets.get("dipole")
        return config is not None and config.per == "system" and str(config.components) == "1x1o"

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Those of `UNCERTAINTIES` that this model has."""
        if not self.has_energy or (self.committee is None and self.last_layer is None):
            return ()
        if self.is_conservative:
            return UNCERTAINTIES
        # Direct forces are not derivatives of an energy that is linear in the features.
        return UNCERTAINTIES[:2] if self.committee is not None else UNCERTAINTIES[:1]

    @functools.cached_property
    def module(self) -> Any:
        """The flax module, or a committee of it; `module.apply({"params": params}, graph, vectors)` returns
        NodeOutputs."""
        from equijax.potential.committee import CommitteeModule

        return self._one_module if self.committee is None else CommitteeModule(self._one_module, self.committee)

    @functools.cached_property
    def _one_module(self) -> Any:
        if not self.targets:
            return self.model_config.build(self.statistics)
        from equijax.models.targets import with_targets

        return with_targets(self.model_config, self.targets, self.target_statistics, self.statistics)

    def member(self, index: int) -> Potential:
        """One model of a committee, without uncertainties."""
        import jax

        if self.committee is None or not 0 <= index < self.committee:
            members = f"has the members 0 to {self.committee - 1}" if self.committee else "is one model, no committee"
            raise EquijaxError(f"there is no member {index}: this potential {members}")
        params = jax.tree.map(lambda leaf: np.array(leaf[index]), dict(self.params))
        metadata = {**self.metadata, "member": index}
        return dataclasses.replace(self, params=params, committee=None, calibration=None, metadata=metadata)

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.params)

    def __repr__(self) -> str:
        from ase.data import chemical_symbols

        symbols = ", ".join(chemical_symbols[z] for z in self.elements)
        targets = f"targets: {', '.join(self.targets)}, " if self.targets else ""
        committee = f"committee of {self.committee}, " if self.committee else ""
        return (
            f"Potential({self.model_config.name}, {committee}elements: {symbols}, cutoff: {self.cutoff:g} Å, {targets}"
            f"{self.num_parameters} parameters, {self.dtype})"
        )

    def isolated_energies(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """E0 of every atom, [N] float64 eV."""
        table = np.full(max(self.elements) + 1, np.nan)
        table[list(self.elements)] = [self.atomic_energies[z] for z in self.elements]
        return table[np.asarray(atomic_numbers)]

    def check_parameters(self) -> None:
        """Raise EquijaxError when names or shapes of `params` are not those of the model; only traces it."""
        compare_parameters(self.params, parameter_shapes(self.module))

    def evaluator(self, dtype: DType | None = None, padding: PaddingPolicy | None = None) -> Evaluator:
        """The compiled functions of this potential in one precision, without its dispersion."""
        self.refuse_dispersion("compiled functions")
        return self._model_evaluator(dtype, padding)

    def _model_evaluator(self, dtype: DType | None, padding: PaddingPolicy | None) -> Evaluator:
        from equijax.graph.padding import PaddingPolicy
        from equijax.potential.evaluator import Evaluator

        key = (dtype or self.dtype, padding or PaddingPolicy())
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(self, *key)
        return self._evaluators[key]

    @functools.cached_property
    def _evaluators(self) -> dict[Any, Evaluator]:
        return {}

    def predict(
        self,
        structures: Any,
        properties: Sequence[str] = ("energy", "forces"),
        dtype: DType | None = None,
        padding: PaddingPolicy | None = None,
        parts: int = 1,
        devices: int = 1,
    ) -> Any:
        """Properties of a Structure or an ASE Atoms (a dict), or of a list of them (a list of dicts).

        | property | shape | unit |
        |---|---|---|
        | energy | () | eV, isolated atoms included, summed in float64 |
        | energies | [N] | eV per atom, sums to energy |
        | forces | [N, 3] | eV/Å |
        | stress | [3, 3] | eV/Å³, ASE's sign; needs a periodic structure with a volume |
        | node_features | [N, F] | |
        | hessian | [3N, 3N] | eV/Å², rows and columns (atom, xyz) |
        | elastic_constants | [6, 6] | eV/Å³, Voigt order, ions clamped: (∂²E/∂e∂e) / V |
        | the name of a target | [3], [3, 3], ... | of the target; [N, ...] per atom, [N, N, ...] per pair |
        | born_charges | [N, 3, 3] | ∂dipole_a/∂r_b, the dipole's per Å; needs a target named dipole |
        | energy_uncertainty | () | eV, one standard deviation; of committees and calibrated models |
        | forces_uncertainty | [N, 3] | eV/Å, of every component |
        | stress_uncertainty | [3, 3] | eV/Å³, of every component |

        Targets without a Cartesian form are given as irreps. All values are numpy arrays; energies are float64, the
        rest has the precision of the calculation. `parts` above one evaluates each structure in so many parts, one
        after another, for structures that do not fit in memory; with as many `devices` all parts at the same time, one
        on each. `equijax.potential.parts` says which properties.
        Raises EquijaxError for unknown properties and elements, and for what `neighbor_list` refuses.
        """
        from equijax.potential.prediction import predict

        for name in properties:
            if name not in PROPERTIES and name not in self.targets:
                hint = did_you_mean(name, (*self.targets, *PROPERTIES))
                raise EquijaxError(f"there is no property {name!r}; {hint}")
            if name in OF_ENERGY and not self.has_energy:
                raise EquijaxError(
                    f"there is no {name}: this model was trained on {', '.join(self.trained or ())} and never on "
                    f"energies or forces; expected properties of {', '.join(self.targets)}"
                )
            if name == "born_charges" and not self.has_dipole:
                raise EquijaxError(
                    "there are no born_charges: they are derivatives of a dipole; expected a model with a target named "
                    f"dipole, a vector per system; it has {', '.join(self.targets) or 'no targets'}"
                )
            if name in UNCERTAINTIES:
                self._require_uncertainty(name)
            if name in ("energies", "hessian", "elastic_constants"):
                self.refuse_dispersion(name)
            if name in ("stress", "hessian", "elastic_constants") and not self.is_conservative:
                raise EquijaxError(
                    f"there is no {name}: this {self.model_config.name} predicts forces directly, which are not the "
                    "gradient of its energy; expected a model with forces: gradient"
                )
        single = not isinstance(structures, Sequence) or hasattr(structures, "get_positions")
        frames = [as_structure(item) for item in ([structures] if single else structures)]
        results = predict(self, frames, tuple(properties), self._model_evaluator(dtype, padding), parts, devices)
        return results[0] if single else results

    def _require_uncertainty(self, name: str) -> None:
        from equijax.potential.uncertainty import ADD_UNCERTAINTIES

        if not self.uncertainties:
            raise EquijaxError(f"there is no {name}: this model has no uncertainties; fix: {ADD_UNCERTAINTIES}")
        if name not in self.uncertainties:
            raise EquijaxError(
                f"there is no {name}: this {self.model_config.name} predicts forces directly; it has "
                f"{', '.join(self.uncertainties)}"
            )


def as_structure(item: Any) -> Structure:
    """A Structure from itself or from an ASE Atoms object."""
    if isinstance(item, Structure):
        return item
    if hasattr(item, "get_positions") and hasattr(item, "numbers"):
        return Structure.from_ase(item)
    raise EquijaxError(f"cannot predict for a {type(item).__name__}; expected a Structure or an ASE Atoms object")


def two_atom_graph() -> tuple[AtomGraph, np.ndarray]:
    """(graph, edge vectors) of two atoms of the first species and a ghost, float32: enough to initialise a module."""
    from equijax.graph.atom_graph import AtomGraph

    graph = AtomGraph(
        positions=np.array([[0.0, 0, 0], [1.5, 0, 0], [0, 0, 0]], np.float32),
        species=np.zeros(3, np.int32),
        node_graph=np.array([0, 0, 1], np.int32),
        node_mask=np.array([True, True, False]),
        neighbors=np.array([[1], [0], [2]], np.int32),
        neighbor_mask=np.array([[True], [True], [False]]),
        shifts=np.zeros((3, 1, 3), np.float32),
        reverse=np.array([[1], [0], [2]], np.int32),
        cell=np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)),
        graph_mask=np.array([True, False]),
    )
    return graph, np.tile(np.array([1.5, 0, 0], np.float32), (3, 1, 1))


def parameter_shapes(module: Any) -> Any:
    """The parameter tree of a module with shapes in place of arrays, found by tracing on a two-atom graph."""
    import jax

    def initialized(*graph: Any) -> Any:
        # A key made outside would be a program of its own to compile; this kind takes the least tracing.
        return module.init(jax.random.key(0, impl="unsafe_rbg"), *graph)

    with precision("float32"), collector_paused():
        return jax.eval_shape(initialized, *two_atom_graph())["params"]


def compare_parameters(params: Mapping[str, Any], shapes: Any) -> None:
    """Raise EquijaxError when names or shapes of parameters are not those of a tree of shapes."""
    expected = {name: tuple(leaf.shape) for name, leaf in _leaves(shapes).items()}
    found = {name: tuple(np.shape(leaf)) for name, leaf in _leaves(params).items()}
    for name in sorted(expected.keys() - found.keys()):
        raise EquijaxError(f"parameter {name} {expected[name]} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise EquijaxError(f"parameter {name} does not belong to this model; {did_you_mean(name, expected)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise EquijaxError(f"parameter {name} has shape {found[name]}; expected {shape}")


def count_parameters(params: Mapping[str, Any]) -> int:
    """Numbers in a tree of parameters."""
    return sum(int(np.size(tensor)) for tensor in _leaves(params).values())


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": leaf}} -> {"a/b": leaf}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _leaves(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
