"""MACE in its variants: symmetry and forces of each in float64, and what single options do.

Parity with mace-torch and parameter counts: test_mace_parity.py. The properties of the default: tests/contracts.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pydantic
import pytest

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.potential import parameter_shapes
from equijax.precision import precision
from equijax.structure import Structure
from tests.contracts.finite_differences import derivative
from tests.contracts.irreps_matrices import feature_matrix
from tests.contracts.structures import methanol, moved, random_rotation, slab, transformed
from tests.contracts.subject import deviation, split

CUTOFF = 3.5
ELEMENTS = (1, 6, 8)
STATISTICS = ModelStatistics(atomic_numbers=ELEMENTS, avg_num_neighbors=1.5, scale=1.3, shift=-0.4)
CAPACITY = Capacity(nodes=10, neighbors=16, graphs=3)
SIZES = {"cutoff": CUTOFF, "num_bessel": 4, "radial_mlp": (6,), "readout_mlp": 4, "lmax": 2}
L0, L1, L2 = "3x0e", "3x0e+3x1o", "3x0e+3x1o+3x2e"
VARIANTS = {
    "agnostic": {"first_interaction": "agnostic", "hidden_irreps": L0, "correlation": 2},
    "agnostic twice, Agnesi": {
        "first_interaction": "agnostic",
        "interaction": "agnostic",
        "hidden_irreps": L1,
        "correlation": 1,
        "distance_transform": "agnesi",
    },
    "density, soft, ZBL, 2e": {
        "first_interaction": "density",
        "interaction": "density_residual",
        "hidden_irreps": L2,
        "correlation": 1,
        "distance_transform": "soft",
        "zbl": True,
    },
    "density without residual, learned": {
        "first_interaction": "density_residual",
        "interaction": "density",
        "hidden_irreps": L1,
        "correlation": 2,
        "isolated_atoms": "learned",
    },
    "three layers": {"num_layers": 3, "hidden_irreps": L1, "correlation": 1},
    "one layer, order three": {"num_layers": 1, "hidden_irreps": L1, "correlation": 3},
}
SLOW_VARIANTS = {
    "all densities, order three, 2e": {
        "first_interaction": "density",
        "interaction": "density",
        "hidden_irreps": L2,
        "lmax": 3,
        "distance_transform": "agnesi",
        "zbl": True,
    },
    "three layers, order three, 2e": {"num_layers": 3, "hidden_irreps": L2, "isolated_atoms": "learned"},
    "soft, order three": {"distance_transform": "soft", "hidden_irreps": L1, "first_interaction": "agnostic"},
}
PARAMETERS = [
    *(pytest.param(options, id=name) for name, options in VARIANTS.items()),
    *(pytest.param(options, id=name, marks=pytest.mark.slow) for name, options in SLOW_VARIANTS.items()),
]


class Model:
    """A config with N(0, 1) weights in float64."""

    def __init__(self, statistics=STATISTICS, **options):
        self.config = MACEConfig(**SIZES | options)
        self.module = self.config.build(statistics)
        rng = np.random.default_rng(3)
        self.params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), parameter_shapes(self.module))
        quick = {"xla_backend_optimization_level": 0}
        self._derivatives = jax.jit(lambda p, g: energy_and_derivatives(self.module, p, g), compiler_options=quick)
        self._forward = jax.jit(
            lambda p, g: self.module.apply({"params": p}, g, edge_vectors(g)).node_energies, compiler_options=quick
        )

    def pack(self, structures):
        return batch([structure_graph(s, CUTOFF, ELEMENTS) for s in structures], CAPACITY, "float64")

    def evaluate(self, structures):
        with precision("float64"):
            found = jax.tree.map(np.asarray, self._derivatives(self.params, self.pack(structures)))
        return split(found, structures)

    def node_energies(self, *structures):
        """Of all atoms, without forces, which compile slower."""
        with precision("float64"):
            return np.asarray(self._forward(self.params, self.pack(structures)))[: sum(len(s) for s in structures)]

    @property
    def feature_irreps(self):
        layers = [self.config.hidden_irreps] * (self.config.num_layers - 1)
        return "+".join([*layers, f"{self.config.hidden.channels}x0e"])


@pytest.mark.parametrize("options", PARAMETERS)
def test_symmetry_and_forces(options):
    model = Model(**options)
    structures = [methanol(), slab()]
    base = model.evaluate(structures)
    for result in base:
        assert np.abs(result.forces).max() > 0.05

    for matrix in (random_rotation(0), -random_rotation(1)):
        features = feature_matrix(model.feature_irreps, matrix)
        for before, after in zip(base, model.evaluate([transformed(s, matrix) for s in structures]), strict=True):
            assert deviation(after.node_energies, before.node_energies) < 1e-10
            assert deviation(after.forces, before.forces @ matrix.T) < 1e-10
            assert deviation(after.stress, matrix @ before.stress @ matrix.T) < 1e-10
            assert deviation(after.node_features, before.node_features @ features.T) < 1e-10

    numeric = [np.zeros((len(s), 3)) for s in structures]
    for atom, axis in itertools.product(range(max(len(s) for s in structures)), range(3)):

        def energies(x, atom=atom, axis=axis):
            displaced = []
            for s in structures:
                displacement = np.zeros((len(s), 3))
                displacement[atom : atom + 1, axis] = x
                displaced.append(moved(s, displacement))
            return np.array([float(r.energy) for r in model.evaluate(displaced)])

        for forces, slope in zip(numeric, derivative(energies, 1e-3), strict=True):
            forces[atom : atom + 1, axis] = -slope
    for result, expected in zip(base, numeric, strict=True):
        assert deviation(result.forces, expected) < 1e-6


def pair(distance, numbers=(6, 1)):
    return Structure(np.array(numbers), np.array([[0.0, 0, 0], [0, 0, distance]]))


ONE_LAYER = {"num_layers": 1, "hidden_irreps": L0, "correlation": 1}


def test_zbl_is_added_inside_the_scale():
    """mace-torch: 1.2583522942537253 eV per atom for C-H at 0.6 Å; the scale multiplies it."""
    plain, repulsive = (Model(**ONE_LAYER, zbl=zbl) for zbl in (False, True))
    difference = repulsive.node_energies(pair(0.6)) - plain.node_energies(pair(0.6))
    np.testing.assert_allclose(difference, STATISTICS.scale * 1.2583522942537253, rtol=1e-12)
    np.testing.assert_array_equal(repulsive.node_energies(pair(1.5)), plain.node_energies(pair(1.5)))


@pytest.mark.parametrize("first", ["agnostic", "residual", "density", "density_residual"])
def test_isolated_atoms_exact_and_learned(first):
    """The two differ by a constant per species, and by a shift that fades with the last neighbour."""
    options = ONE_LAYER | {"first_interaction": first}
    exact, learned = (Model(**options, isolated_atoms=kind) for kind in ("exact", "learned"))
    atoms = [Structure(np.array([z]), np.zeros((1, 3))) for z in ELEMENTS[:2]]
    assert (exact.node_energies(*atoms) == 0.0).all()
    bare = learned.node_energies(*atoms)
    if first in ("agnostic", "density"):
        np.testing.assert_allclose(bare, STATISTICS.shift, rtol=1e-14)
    else:
        assert abs(bare[0] - bare[1]) > 1e-3
    # Two bonded atoms: envelope above 0.9, tanh(0.9...) of the shift.
    h_h = pair(0.8, (1, 1))
    faded = exact.node_energies(h_h) - (learned.node_energies(h_h) - bare[0])
    assert (np.abs(faded) <= np.abs(STATISTICS.shift)).all()
    np.testing.assert_allclose(faded, STATISTICS.shift * np.tanh(envelope(0.8)), rtol=1e-9)


def envelope(distance):
    u = distance / CUTOFF
    return 1 - 21 * u**5 + 35 * u**6 - 15 * u**7


def test_scale_and_shift():
    options = ONE_LAYER | {"isolated_atoms": "learned"}
    unit = Model(ModelStatistics(ELEMENTS, 1.5, scale=1.0, shift=0.0), **options)
    scaled = Model(ModelStatistics(ELEMENTS, 1.5, scale=-2.5, shift=7.0), **options)
    np.testing.assert_allclose(
        scaled.node_energies(methanol()), -2.5 * unit.node_energies(methanol()) + 7.0, rtol=1e-12
    )


def test_number_of_neighbors_divides_messages_unless_there_is_a_density():
    def energies(kind, neighbors):
        return Model(ModelStatistics(ELEMENTS, neighbors), **ONE_LAYER, first_interaction=kind).node_energies(
            methanol()
        )

    np.testing.assert_array_equal(energies("density", 1.5), energies("density", 6.0))
    assert np.abs(energies("residual", 1.5) - energies("residual", 6.0)).max() > 1e-3


def test_activation_constant_is_used():
    exact, torch = (
        Model(**ONE_LAYER, activation_norm=norm).node_energies(methanol()) for norm in ("exact", "torch_e3nn")
    )
    relative = np.abs(exact - torch).max() / np.abs(exact).max()
    assert 1e-5 < relative < 0.1


def test_last_layer_keeps_scalars_only():
    config = MACEConfig(**SIZES | {"hidden_irreps": L2})
    shapes = parameter_shapes(config.build(STATISTICS))
    assert set(shapes["products_0"]["linear"]) == {"0e", "1o", "2e"}
    assert set(shapes["products_1"]["linear"]) == {"0e"}
    assert set(shapes["interactions_1"]["linear"]) == {"0e", "1o", "2e"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_irreps": "8x0e+8x1o+8x2e", "lmax": 1}, "reaches degree 2, messages only lmax 1"),
        ({"hidden_irreps": "8x0e+8x1e"}, "term 2 is 1e"),
        ({"hidden_irreps": "5000x0e"}, "at most 4096"),
        ({"correlation": 4}, "less than or equal to 3"),
        ({"correlation": 0}, "greater than or equal to 1"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"interaction": "attention"}, "'agnostic', 'residual', 'density' or 'density_residual'"),
        ({"polynomial_cutoff_power": 2}, "greater than or equal to 3"),
        ({"edge_product": "gaunt"}, "clebsch_gordan"),
        ({"lmax": True}, "valid integer"),
    ],
)
def test_refused_configs(wrong, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        MACEConfig(**wrong)


def test_products_by_name():
    assert MACEConfig(edge_product="clebsch_gordan", node_product={"name": "clebsch_gordan"}) == MACEConfig()
