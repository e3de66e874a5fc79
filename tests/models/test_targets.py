"""Targets of a config: what is refused, statistics of labels, positive forms, derivatives by a field."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from equijax.errors import EquijaxError
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.irreps.voigt import to_mandel_matrix
from equijax.models.contract import ModelStatistics
from equijax.models.heads import FieldHead
from equijax.models.positive_forms import PositiveForm
from equijax.models.targets import TargetConfig, TargetStatistics, target_statistics, unit_statistics
from equijax.precision import precision
from tests.contracts.structures import ethanol
from tests.contracts.target_cases import STIFFNESS

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either irreps or tensor"),
        ({"irreps": "1o", "tensor": "i"}, "give either irreps or tensor"),
        ({"irreps": "1p"}, "cannot read the term '1p'"),
        ({"irreps": "5e"}, "degrees above 4 are not supported"),
        ({"irreps": "2e", "traceless": True}, "parity and traceless go with tensor"),
        ({"tensor": "ij=jk"}, "'jk' does not have the indices of 'ij'"),
        ({"tensor": "ij", "traceless": True}, "traceless is for tensors symmetric in all"),
        ({"tensor": "ij=ji", "per": "atom", "form": "square"}, "form square is for targets per system"),
        ({"tensor": "i", "per": "pair", "reduce": "mean"}, "reduce is for targets per system"),
        ({"tensor": "ij=ji", "form": "charges_and_dipoles"}, r"for vectors \(1o\), not 1x0e\+1x2e"),
        ({"tensor": "i", "parity": "pseudo", "form": "charges_and_dipoles"}, r"for vectors \(1o\), not 1x1e"),
        ({"tensor": "i", "total_charge": 1.0}, "total_charge is for form charges_and_dipoles"),
        ({"tensor": "ij", "form": "field"}, "form field is for i, ij=ji and the fully symmetric ijk"),
        ({"tensor": "i", "form": "field", "reduce": "mean"}, "extensive targets: reduce is sum"),
        ({"tensor": "ij", "form": "square"}, "form square is for ij=ji and stiffness tensors"),
        ({"tensor": "ijkl=jikl=ijlk", "form": "exponential"}, "form exponential is for ij=ji and stiffness tensors"),
        ({"tensor": "i", "forms": "direct"}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_target_cannot_be(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        TargetConfig(**options)


@pytest.mark.parametrize("irreps", ["1o", "0e+2e", "2e", "1e", "0e+1e+2e", "2x0e+2x2e+4e"])
def test_irreps_of_a_common_tensor_are_that_tensor(irreps):
    config = TargetConfig(irreps=irreps)
    assert config.cartesian is not None
    assert config.cartesian.irreps == config.components
    assert TargetConfig(irreps="0o+2o").cartesian is None


def labels_of(config: TargetConfig, count: int = 40) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Labels whose 0e are 2 per H and 5 per O and whose other components have size 0.3, and their atoms."""
    rng = np.random.default_rng(0)
    numbers = [np.array([1] * rng.integers(1, 5) + [8] * rng.integers(1, 4)) for _ in range(count)]
    labels = []
    for z in numbers:
        label = 0.3 * rng.normal(size=config.components.dim)
        total = 2.0 * (z == 1).sum() + 5.0 * (z == 8).sum()
        label[0] = total / (len(z) if config.reduce == "mean" else 1)
        labels.append(label)
    return labels, numbers


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_shifts_are_what_elements_add_and_scales_the_size_of_the_rest(reduce):
    config = TargetConfig(tensor="ij=ji", reduce=reduce)
    labels, numbers = labels_of(config)
    found = target_statistics(config, labels, numbers, (1, 8))
    np.testing.assert_allclose(found.shifts, [[2.0, 5.0]], atol=1e-12)
    size = np.sqrt(np.mean(np.square([label[1:] for label in labels])))
    assert found.scales[1] == pytest.approx(size, rel=1e-12)
    # The scalars are shifts to the last digit: nothing is left to take a scale of.
    assert found.scales[0] == pytest.approx(size * (5 / 6) ** 0.5, rel=1e-6)
    assert found.means[0] == pytest.approx(np.mean([label[0] for label in labels]))
    assert TargetStatistics.from_json(found.to_json()) == found


def test_no_statistics_without_labels():
    config = TargetConfig(tensor="i")
    with pytest.raises(EquijaxError, match="there are no labels to take statistics of"):
        target_statistics(config, [], [], (1,))
    with pytest.raises(EquijaxError, match="all labels are zero"):
        target_statistics(config, [np.zeros(3)], [np.array([1])], (1,))


@pytest.mark.parametrize("form", ["square", "exponential"])
@pytest.mark.parametrize("tensor", ["ij=ji", STIFFNESS])
def test_positive_forms_start_at_the_mean_and_stay_positive(form, tensor):
    config = TargetConfig(tensor=tensor, form=form, reduce="mean")
    scalars = sum(b.irrep.l == 0 for b in config.components.blocks())
    target = TargetStatistics((0.4,) * len(config.components.blocks()), ((0.0,),) * scalars, (3.0, 2.0)[:scalars])
    of = PositiveForm(config, target)
    dim = config.components.dim
    far = 5.0 * np.random.default_rng(1).normal(size=(20, dim))
    with precision("float64"):
        start, near, *far = np.asarray(
            quick_jit(of)(np.concatenate([np.zeros((1, dim)), np.full((1, dim), 1e-3), far]))
        )
    np.testing.assert_allclose(start[:scalars], target.means, rtol=1e-12)
    assert np.abs(start[scalars:]).max() < 1e-12
    # A change by one moves the result by about the scale of the labels.
    assert 0.1 < np.abs(near - start).max() / (1e-3 * 0.4) < 3
    matrices = np.asarray(config.cartesian.to_cartesian(np.array(far)))
    eigenvalues = np.linalg.eigvalsh(matrices if tensor == "ij=ji" else to_mandel_matrix(matrices))
    assert (eigenvalues > (-1e-12 * eigenvalues.max() if form == "square" else 0)).all()


def test_positive_form_refuses_labels_whose_mean_is_not_positive():
    config = TargetConfig(tensor="ij=ji", form="square")
    form = PositiveForm(config, TargetStatistics((1.0, 1.0), ((0.0,),), (-2.0,)))
    with pytest.raises(
        EquijaxError, match=r"not positive definite \(its smallest eigenvalue is -1.15\); .*form: direct"
    ):
        form(jnp.zeros(6))


def test_polarizability_is_the_derivative_of_the_dipole_by_the_field():
    """Both are derivatives of one energy: central differences."""
    targets = {name: TargetConfig(tensor=t, form="field") for name, t in (("dipole", "i"), ("alpha", "ij=ji"))}
    numbers = {name: unit_statistics(config, (1, 6, 8)) for name, config in targets.items()}
    graph = batch([structure_graph(ethanol(), 4.0, (1, 6, 8))], Capacity(nodes=10, neighbors=8, graphs=2), "float64")
    inputs = ({0: np.eye(3)[graph.species][:, None]}, graph)
    rng = np.random.default_rng(1)

    def head(field):
        return FieldHead(4.0, ModelStatistics((1, 6, 8), 5.0), targets, numbers, field)

    def run(params, field):
        found = head(field).apply(params, *inputs, edge_vectors(graph))
        return [config.cartesian.to_cartesian(found[name][0]) for name, config in targets.items()]

    with precision("float64"):
        graph = jax.tree.map(jnp.asarray, graph)
        shapes = jax.eval_shape(lambda: head((0.0, 0.0, 0.0)).init(jax.random.key(0), *inputs, edge_vectors(graph)))
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * leaf.shape[0] ** -0.5, shapes)
        compiled = quick_jit(run)
        origin, step = np.array([0.1, -0.2, 0.05]), 1e-4
        _, alpha = compiled(params, origin)
        for axis in range(3):
            (ahead, _), (behind, _) = (compiled(params, origin + s * np.eye(3)[axis]) for s in (step, -step))
            slope = (np.asarray(ahead) - np.asarray(behind)) / (2 * step)
            np.testing.assert_allclose(slope, alpha[axis], atol=1e-7 * np.abs(alpha).max())
