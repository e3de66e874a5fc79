"""Tensor products named in the config of MACE: every fitting combination obeys the symmetries, others are refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from equijax.bench.models import ethanol
from equijax.config.yaml import validate
from equijax.errors import EquijaxError
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, batch_capacity, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.models import MACEConfig, ModelStatistics
from equijax.ops import TENSOR_PRODUCTS
from equijax.ops.tensor_product import EdgeProduct, PowerProduct
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import jit, precision

SMALL = {"hidden_irreps": "2x0e+2x1o", "lmax": 2, "radial_mlp": [4], "num_bessel": 3, "readout_mlp": 4, "cutoff": 4.0}
EDGE = [name for name, row in TENSOR_PRODUCTS.items() if issubclass(row, EdgeProduct)]
POWER = [name for name, row in TENSOR_PRODUCTS.items() if issubclass(row, PowerProduct)]
PAIRS = [(edge, "clebsch_gordan") for edge in EDGE] + [("clebsch_gordan", power) for power in POWER[1:]]


@pytest.mark.parametrize(
    ("edge", "power"),
    [pytest.param(*pair, marks=pytest.mark.slow if "gaunt_fourier" in pair else ()) for pair in PAIRS],
)
def test_symmetries_and_forces(edge, power):
    config = MACEConfig(**SMALL, edge_product=edge, node_product=power)
    module = config.build(ModelStatistics((1, 6, 8), 7.0))
    assert (config.edge_product.name, config.node_product.name) == (edge, power)
    assert MACEConfig.model_validate(config.model_dump()) == config

    structure = ethanol(0)
    matrix, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    direction = np.random.default_rng(2).normal(size=structure.positions.shape)
    step = 1e-4

    def graph(positions):
        graphs = [structure_graph(dataclasses.replace(structure, positions=positions), config.cutoff, (1, 6, 8))]
        return batch(graphs, batch_capacity(graphs, PaddingPolicy()), "float64")

    with precision("float64"):
        start = graph(structure.positions)
        params = jit(module.init, compiler_options={"xla_backend_optimization_level": "0"})(
            jax.random.key(0), start, edge_vectors(start)
        )["params"]
        run = jit(
            lambda p, g: energy_and_derivatives(module, p, g), compiler_options={"xla_backend_optimization_level": "0"}
        )

        def evaluate(positions):
            result = run(params, graph(positions))
            return float(result.energy[0]), np.asarray(result.forces)[: len(structure)]

        energy, forces = evaluate(structure.positions)
        turned_energy, turned_forces = evaluate(structure.positions @ matrix.T)
        forward, _ = evaluate(structure.positions + step * direction)
        backward, _ = evaluate(structure.positions - step * direction)
    assert np.abs(forces).max() > 1e-3
    assert turned_energy == pytest.approx(energy, rel=1e-10)
    np.testing.assert_allclose(turned_forces, forces @ matrix.T, rtol=0, atol=1e-10)
    assert -(forward - backward) / (2 * step) == pytest.approx(float((forces * direction).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("field", "name", "message"),
    [
        (
            "node_product",
            "so2",
            "'so2' cannot make symmetric powers of features; expected one of clebsch_gordan, gaunt",
        ),
        ("node_product", "matrix_product", "'matrix_product' cannot make symmetric powers of features"),
        ("edge_product", "vector_signal", "'vector_signal' cannot make a product of features with an edge"),
        ("edge_product", "gaunt_gird", "gaunt_grid"),
    ],
)
def test_combinations_that_do_not_fit_are_refused(field, name, message):
    with pytest.raises(EquijaxError) as error:
        validate(MACEConfig, {"name": "mace", field: name}, "run.yaml")
    assert message in str(error.value)


def test_what_a_product_lacks_is_named():
    config = MACEConfig(**SMALL, edge_product="gaunt_grid", node_product="gaunt_grid")
    text = " ".join(config.limits())
    assert "edge_product gaunt_grid reaches a family of" in text
    assert "node_product gaunt_grid has 1 of 5 independent invariants of order 3 per channel" in text


def test_the_default_lacks_nothing():
    assert MACEConfig().limits() == ()


def test_approximate_products_say_how_far_they_are_off():
    (text,) = (t for t in MACEConfig(edge_product={"name": "cp", "rank": 24}).limits() if "error" in t)
    assert text == "edge_product cp is equivariant only up to a relative error of 1.6e-03"


def test_options_of_a_product_can_be_written_out():
    config = MACEConfig(edge_product={"name": "so2", "mmax": 1})
    assert config.edge_product.mmax == 1
