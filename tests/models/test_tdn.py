"""TDN against a second implementation in loops, its published sizes, approximate ranks, direct forces, every product.

The properties of the default: tests/contracts.
"""

from __future__ import annotations

import itertools
import re

import jax
import numpy as np
import pytest

from equijax.config.yaml import validate
from equijax.errors import EquijaxError
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.models import ModelStatistics, TDNConfig
from equijax.ops import CP, TENSOR_PRODUCTS
from equijax.ops.tensor_product import EdgeProduct
from equijax.potential.potential import parameter_shapes
from equijax.precision import precision
from equijax.structure import Structure
from tests.contracts.structures import joined, methanol, random_rotation, transformed

ELEMENTS = (1, 6, 8)
STATISTICS = ModelStatistics(atomic_numbers=ELEMENTS, avg_num_neighbors=4.0, scale=1.3, shift=-0.4)
CAPACITY = Capacity(nodes=8, neighbors=8, graphs=2)
SIZES = {"cutoff": 3.5, "channels": 4, "num_layers": 1, "num_heads": 2, "num_gaussians": 5, "radial_mlp": (6,)}
PUBLISHED = {"name": "cp", "rank": "quadratic", "parity": "any", "weights": "shared"}


class Model:
    """A config with random weights in float64."""

    def __init__(self, **options):
        self.config = TDNConfig(**SIZES | options)
        self.module = self.config.build(STATISTICS)
        rng = np.random.default_rng(5)
        self.params = jax.tree.map(lambda leaf: 0.8 * rng.normal(size=leaf.shape), parameter_shapes(self.module))
        self._apply = jax.jit(
            lambda p, g: self.module.apply({"params": p}, g, edge_vectors(g)),
            compiler_options={"xla_backend_optimization_level": 0},
        )

    def at_the_start(self):
        """With the parameters that training begins with."""
        with precision("float64"):
            graph = batch([structure_graph(methanol(), self.config.cutoff, ELEMENTS)], CAPACITY, "float64")
            init = jax.jit(self.module.init, compiler_options={"xla_backend_optimization_level": 0})
            self.params = init(jax.random.key(0), graph, edge_vectors(graph))["params"]
        return self

    def __call__(self, structure):
        """`NodeOutputs` of the atoms of one structure."""
        with precision("float64"):
            graph = batch([structure_graph(structure, self.config.cutoff, ELEMENTS)], CAPACITY, "float64")
            outputs = jax.tree.map(np.asarray, self._apply(self.params, graph))
        return jax.tree.map(lambda a: a[: len(structure)], outputs)


# --- a second implementation: one edge, one coupling and one head at a time ------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shared(p, x):
    """Rows of features times one matrix, with a bias on the first row."""
    y = x @ p["linear"]["kernel"]
    if "bias" in p:
        y[0] += p["bias"]
    return y


def normed(p, x, lmax, epsilon):
    y = x.copy()
    y[0] -= y[0].mean()
    for l in range(lmax + 1):
        y[degree_slice(l)] *= p["scale"][l] / np.sqrt((y[degree_slice(l)] ** 2).mean() + epsilon)
    y[0] += p["bias"]
    return y


def gated(p, x):
    first, gates = shared(p["values"], x), x[0] @ p["gates"]["kernel"] + p["gates"]["bias"]
    return np.array([row * sigmoid(first[0] if i == 0 else gates) for i, row in enumerate(first)])


def radial_weights(p, basis):
    x = basis
    for i in range(len(SIZES["radial_mlp"])):
        x = x @ p[f"layer_{i}"]["kernel"] + p[f"layer_{i}"]["bias"]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
        x = x * sigmoid(x)
    return x @ p[f"layer_{len(SIZES['radial_mlp'])}"]["kernel"] + p["offset"]


def coupled(x, y, weight, lmax):
    """Every coupling of x and y with weight one, scaled to unit variance, times the weight of each channel."""
    result = np.zeros_like(x)
    for l3 in range(lmax + 1):
        paths = [(l1, l2) for l1, l2 in itertools.product(range(lmax + 1), repeat=2) if abs(l1 - l2) <= l3 <= l1 + l2]
        for l1, l2 in paths:
            w3j = wigner_3j(l1, l2, l3) * np.sqrt((2 * l3 + 1) / len(paths))
            result[degree_slice(l3)] += np.einsum("ic,j,ijk->kc", x[degree_slice(l1)], y[degree_slice(l2)], w3j)
    return result * weight


def attended(p, x, i, edges, lmax, heads):
    """Values of the neighbours j of atom i, weighted."""
    channels, total = x[0].shape[1], 1.0
    terms = []
    for j, f, y, basis in edges:
        message = shared(p["merge_sender"], x[j]) + shared(p["merge_receiver"], x[i])
        weight = radial_weights(p["edges"]["radial"], basis)
        first = coupled(message, y, weight, lmax)
        alpha = first[0] @ p["edges"]["alpha"]["kernel"] + p["edges"]["alpha"]["bias"]
        alpha = 0.6 * alpha + 0.4 * alpha * (2 * sigmoid(alpha) - 1)
        logits = (alpha.reshape(heads, -1) * p["edges"]["alpha_dot"]).sum(1)
        terms.append((f * np.exp(logits), coupled(gated(p["edges"]["value"], first), y, weight, lmax)))
        total = total + terms[-1][0]
    result = np.zeros_like(x[i])
    for exponential, value in terms:
        result += value * np.repeat(exponential / total, channels // heads)
    return result


def reference(config, params, structure):
    """Energies and direct forces of a molecule by one block."""
    lmax, heads, size = config.lmax, config.num_heads, len(structure)
    g, species = params["gaussians"], [ELEMENTS.index(z) for z in structure.atomic_numbers]
    edges = []
    for i in range(size):
        edges.append([])
        for j in range(size):
            vector = structure.positions[i] - structure.positions[j]
            r = np.linalg.norm(vector)
            if i != j and r < config.cutoff:
                u, sigma = g["weight"] * r / config.cutoff + g["bias"], np.abs(g["std"]) + 1e-5
                basis = np.exp(-0.5 * ((u - g["mean"]) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
                t, power = r / config.cutoff, config.polynomial_cutoff_power
                f = 1 - (power + 1) * (power + 2) / 2 * t**power + power * (power + 2) * t ** (power + 1)
                f -= power * (power + 1) / 2 * t ** (power + 2)
                edges[i].append((j, f, np.asarray(spherical_harmonics(vector / r, lmax)), basis))

    embedding, block = params["degree_embedding"], jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    ones = np.ones(config.channels) @ embedding["ones"]["kernel"] + embedding["ones"]["bias"]

    def embedded(i, neighbours):
        x = np.zeros(((lmax + 1) ** 2, config.channels))
        for _, f, y, basis in neighbours:
            message = np.outer(y, radial_weights(embedding["radial"], basis) * ones)
            message = message @ embedding["project"]["linear"]["kernel"]
            message[0] += embedding["bias"]
            x += f * message / np.sqrt(STATISTICS.avg_num_neighbors)
        x[0] += params["species_table"]["table"][species[i]]
        return x

    def updated(x, what):
        x = x + shared(block["project"], what)
        return x + shared(block["output"], gated(block["hidden"], normed(block["norm_2"], x, lmax, epsilon)))

    def energy(x):
        hidden = x[0] @ params["energy_head"]["hidden"]["kernel"] + params["energy_head"]["hidden"]["bias"]
        return ((hidden * sigmoid(hidden)) @ params["energy_head"]["output"]["kernel"]).item()

    epsilon = config.norm_epsilon
    start = [embedded(i, edges[i]) for i in range(size)]
    before = [normed(block["norm_1"], x, lmax, epsilon) for x in start]
    after = [updated(start[i], attended(block["attention"], before, i, edges[i], lmax, heads)) for i in range(size)]
    final = [normed(params["norm"], x, lmax, epsilon) for x in after]
    energies, forces = [], []
    for i in range(size):
        alone = normed(params["norm"], updated(embedded(i, []), np.zeros_like(start[i])), lmax, epsilon)
        bonded = sum(f for _, f, _, _ in edges[i])
        energies.append(STATISTICS.scale * (energy(final[i]) - energy(alone)) + STATISTICS.shift * np.tanh(bonded))
        head = params["force_head"]
        vectors = attended(head["attention"], final, i, edges[i], lmax, heads)[1:4]
        vectors = shared(head["project"], vectors) @ head["output"]["linear"]["kernel"]
        forces.append(STATISTICS.scale * vectors[:, 0])
    return np.array(energies), np.array(forces)


def test_one_block_against_loops():
    model = Model(forces="direct", lmax=2, edge_product={**PUBLISHED, "rank": "exact"})
    found = model(methanol())
    with precision("float64"):
        energies, forces = reference(model.config, model.params, methanol())
    assert np.abs(forces).max() > 0.05
    np.testing.assert_allclose(found.node_energies, energies, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.node_forces, forces, rtol=1e-10, atol=1e-10)


# --- sizes, symmetries, options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "layers", "gaussians", "published"), [(256, 6, 256, 4_476_676), (128, 4, 128, 883_332)]
)
def test_published_sizes(channels, layers, gaussians, published):
    """80 elements, direct forces. Missing are biases without effect: one vector beside the species table, one that only
    forces could read, and those of the two last numbers."""
    config = TDNConfig(
        channels=channels,
        num_layers=layers,
        num_gaussians=gaussians,
        lmax=1,
        forces="direct",
        norm_epsilon=1e-5,
        edge_product=PUBLISHED,
    )
    shapes = parameter_shapes(config.build(ModelStatistics(tuple(range(1, 81)), 18.6)))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert count == published - (2 * channels + 2)


def asymmetry(model):
    """Root mean square change of the direct forces of a molecule over a few turns, relative to the forces."""
    molecule = methanol()
    before = model(molecule).node_forces
    turns = [random_rotation(seed) for seed in range(4)]
    changes = [model(transformed(molecule, turn)).node_forces - before @ turn.T for turn in turns]
    return np.sqrt(np.mean(np.square(changes)) / np.mean(before**2))


@pytest.mark.slow
@pytest.mark.parametrize(("lmax", "ranks"), [(1, (7, 8)), (2, (28, 30))])
def test_equivariance_error_falls_with_the_rank(lmax, ranks):
    """At the start of training it is about what the product says; later it grows with the weights."""
    stated, measured = [], []
    for rank in ranks:
        model = Model(forces="direct", lmax=lmax, edge_product={**PUBLISHED, "rank": rank}).at_the_start()
        stated.append(model.config.product(lmax).equivariance_error)
        measured.append(asymmetry(model))
        assert measured[-1] < 3 * stated[-1] + 1e-11
    assert stated[0] > 1e-2
    assert measured[0] > 1e-3
    assert measured[1] < 1e-11


def test_direct_forces_turn_and_invert_with_the_molecule():
    model = Model(forces="direct", num_layers=2, lmax=1)
    assert (model.config.is_conservative, model.config.is_o3) == (False, True)
    assert any("no stress" in limit for limit in model.config.limits())
    structure = joined(methanol(), Structure(np.array([8]), np.full((1, 3), 30.0)))
    before = model(structure)
    assert np.abs(before.node_forces[:6]).max() > 1e-2
    assert (before.node_forces[6], before.node_energies[6]) == (pytest.approx([0, 0, 0], abs=0), 0)
    matrix = -random_rotation(3)
    after = model(transformed(structure, matrix))
    np.testing.assert_allclose(after.node_energies, before.node_energies, rtol=1e-10)
    np.testing.assert_allclose(after.node_forces, before.node_forces @ matrix.T, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, row in TENSOR_PRODUCTS.items() if issubclass(row, EdgeProduct)])
def test_every_edge_product(name):
    model = Model(lmax=1, edge_product=name)
    assert TDNConfig.model_validate(model.config.model_dump()) == model.config
    before, after = model(methanol()), model(transformed(methanol(), -random_rotation(1)))
    assert np.abs(before.node_energies).max() > 1e-2
    np.testing.assert_allclose(after.node_energies, before.node_energies, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_product": "matrix_product"}, "'matrix_product' cannot make a product of features with an edge"),
        ({"num_heads": 5}, "64 cannot be shared by 5 heads; take a multiple"),
        ({"lmax": 3, "edge_product": PUBLISHED}, "no factors of rank 63 for the degrees (3, 3, 3), parity 'any'"),
        ({"lmax": 0}, "got 0; expected greater than or equal to 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(EquijaxError, match=re.escape(message)):
        validate(TDNConfig, {"name": "tdn", **options}, "run.yaml")


def test_what_the_published_form_gives_up_is_named():
    config = TDNConfig(lmax=1, forces="direct", edge_product=PUBLISHED)
    assert (config.is_conservative, config.is_o3) == (False, False)
    text = "\n".join(config.limits())
    for part in ("relative error of 1.5e-02", "under rotations only", "predicted directly"):
        assert part in text
    assert TDNConfig().is_o3
    assert TDNConfig(edge_product=CP()).product(2).path_count == 3
