"""eSCN against fairchem-core 1.10, layer by layer, with its weights and its random rotations; and published sizes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.irreps.layout import FeatureIrreps, from_mul_ir
from equijax.models.contract import ModelStatistics
from equijax.models.escn_config import ESCNConfig
from equijax.ops.sphere_samples import sampled_harmonics, sphere_samples
from equijax.potential.potential import parameter_shapes
from equijax.precision import precision
from equijax.structure import Structure

FIXTURES = Path(__file__).parents[1] / "fixtures" / "escn"
ELEMENTS = (1, 6, 7, 8)
STATISTICS = ModelStatistics(ELEMENTS, avg_num_neighbors=3.0)
PUBLISHED = {
    "polynomial_cutoff_power": None,
    "norm": None,
    "edge_degree_embedding": False,
    "message_sum": "plain",
    "forces": {"name": "direct"},
    "isolated_atoms": "learned",
}


def published(lmax, mmax, hidden, resolution=None, **options):
    mixing = {"name": "so2_linear", "mmax": mmax, "hidden_channels": hidden, "parity": "any"}
    return ESCNConfig(
        lmax=lmax, edge_product=mixing, activation={"name": "grid", "resolution": resolution}, **PUBLISHED, **options
    )


def linear(weights, name, bias=True):
    entry = {"kernel": weights[f"{name}.weight"].T}
    return entry | {"bias": weights[f"{name}.bias"]} if bias else entry


def so2_block(weights, prefix, mmax):
    tree = {
        "gate_0": linear(weights, f"{prefix}.fc1_dist0"),
        "in_0": weights[f"{prefix}.fc1_m0.weight"].T[None],
        "out_0": weights[f"{prefix}.fc2_m0.weight"].T[None],
    }
    for m in range(1, mmax + 1):
        conv = f"{prefix}.so2_conv.{m - 1}"
        tree[f"gate_{m}"] = linear(weights, f"{conv}.fc1_dist")
        for ours, theirs in (("in", "fc1"), ("out", "fc2")):
            tree[f"{ours}_{m}"] = np.stack([weights[f"{conv}.{theirs}_{part}.weight"].T for part in "ri"])
    return tree


def parameters(weights, num_layers, mmax):
    """The parameters that fairchem's names stand for."""
    rows = list(ELEMENTS)
    layers = []
    for i in range(num_layers):
        message = f"layer_blocks.{i}.message_block"
        edge = f"{message}.edge_block"
        scalars = {
            "layer_0": linear(weights, f"{edge}.fc1_dist"),
            "layer_1": linear(weights, f"{edge}.fc1_edge_attr"),
            "source": weights[f"{edge}.source_embedding.weight"][rows],
            "target": weights[f"{edge}.target_embedding.weight"][rows],
        }
        blocks = {side: so2_block(weights, f"{message}.so2_block_{side}", mmax) for side in ("source", "target")}
        update = {f"layer_{k}": linear(weights, f"layer_blocks.{i}.fc{k + 1}_sphere", bias=False) for k in range(3)}
        layers.append({"message": {"edge_scalars": scalars, **blocks}, "update": update})
    readouts = {
        name: {f"layer_{k}": linear(weights, f"{name}_block.fc{k + 1}", bias=k < 2) for k in range(3)}
        for name in ("energy", "force")
    }
    embedding = weights["sphere_embedding.weight"][rows]
    return {"embedding": embedding, "layers": jax.tree.map(lambda *a: np.stack(a), *layers), **readouts}


class Reference:
    """One fixture: the model of fairchem, and our graph of its molecules."""

    def __init__(self, name, lmax, mmax, resolution):
        with np.load(FIXTURES / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.weights = {k.removeprefix("weights "): v for k, v in self.arrays.items() if k.startswith("weights ")}
        self.lmax, self.mmax, self.resolution = lmax, mmax, resolution
        molecule, numbers = self.arrays["batch"], self.arrays["atomic_numbers"]
        structures = [Structure(numbers[molecule == i], self.arrays["positions"][molecule == i]) for i in (0, 1)]
        graphs = [structure_graph(s, 6.0, ELEMENTS) for s in structures]
        self.graph = batch(graphs, Capacity(nodes=9, neighbors=5, graphs=3), "float64")
        self.vectors = edge_vectors(self.graph)
        self.rotations = np.tile(np.eye(3), (9, 5, 1, 1))
        for (sender, receiver), rotation in zip(self.arrays["edge_index"].T, self.arrays["rotations"], strict=True):
            (slot,) = np.flatnonzero((self.graph.neighbors[receiver] == sender) & self.graph.neighbor_mask[receiver])
            self.rotations[receiver, slot] = rotation

    def config(self, num_layers):
        return published(
            self.lmax,
            self.mmax,
            8,
            self.resolution,
            cutoff=6.0,
            num_layers=num_layers,
            channels=6,
            edge_channels=7,
            radial_basis={"name": "gaussian", "count": len(self.weights["distance_expansion.offset"])},
        )

    def outputs(self, num_layers):
        module = self.config(num_layers).build(STATISTICS)
        params = jax.tree.map(np.float64, parameters(self.weights, num_layers, self.mmax))
        expected = jax.tree.map(lambda leaf: leaf.shape, parameter_shapes(module))
        assert jax.tree.map(lambda leaf: leaf.shape, params) == expected
        apply = jax.jit(module.apply, compiler_options={"xla_backend_optimization_level": 0})
        return apply({"params": params}, self.graph, self.vectors, self.rotations)


# The buffers of fairchem (centres of Gaussians, sphere points) are of float32 precision.
@pytest.mark.parametrize(
    ("name", "lmax", "mmax", "resolution", "depths"), [("l3_m2", 3, 2, None, (3,)), ("l2_m2", 2, 2, 14, (1, 3))]
)
def test_is_fairchem_layer_by_layer(name, lmax, mmax, resolution, depths):
    with precision("float64"):
        reference = Reference(name, lmax, mmax, resolution)
        for depth in depths:
            outputs = reference.outputs(depth)
            found = from_mul_ir(outputs.node_features, FeatureIrreps(6, lmax))[:8]
            expected = reference.arrays["features"][depth - 1]
            assert np.abs(expected[:, 1:]).max() > 0.5, "l > 0 must matter"
            np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
        energies = jax.ops.segment_sum(outputs.node_energies[:8], jnp.asarray(reference.arrays["batch"]), 2)
    forces = reference.arrays["forces"]
    np.testing.assert_allclose(energies, reference.arrays["energy"], rtol=1e-5)
    np.testing.assert_allclose(outputs.node_forces[:8], forces, atol=1e-6 * np.abs(forces).max())
    assert (np.asarray(outputs.node_forces[8:]) == 0.0).all()


def test_sphere_samples_are_those_of_fairchem():
    weights = Reference("l3_m2", 3, 2, None).weights
    points = sphere_samples(128)
    np.testing.assert_allclose(points, weights["sphere_points"], atol=1e-6)
    np.testing.assert_allclose(sampled_harmonics(points, 3), weights["sphharm_weights.0"], atol=2e-6)


@pytest.mark.parametrize(
    ("lmax", "mmax", "num_layers", "channels", "hidden", "count"),
    [
        (4, 2, 12, 128, 256, 36_109_312),
        (6, 2, 12, 128, 256, 51_837_952),
        (6, 3, 20, 160, 384, 200_227_840),
    ],
)
def test_published_parameter_counts(lmax, mmax, num_layers, channels, hidden, count):
    config = published(
        lmax,
        mmax,
        hidden,
        cutoff=12.0,
        num_layers=num_layers,
        channels=channels,
        edge_channels=128,
        radial_basis={"name": "gaussian", "count": 600},
    )
    shapes = parameter_shapes(config.build(ModelStatistics(tuple(range(1, 91)), 20.0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation": "silu"}, "Input tag 'silu'"),
        ({"activation": "grid"}, "activation: grid depends on the turn of each frame"),
        ({"polynomial_cutoff_power": None}, "forces: a gradient needs an envelope"),
        (PUBLISHED | {"isolated_atoms": "exact"}, "isolated_atoms: exact needs an envelope"),
        (
            PUBLISHED | {"isolated_atoms": "learned", "activation": {"name": "grid", "resolution": 6}},
            "lmax 3 needs at least 8",
        ),
        ({"lmax": 1}, "lower mmax to 1"),
        ({"edge_product": "matrix_product"}, "'matrix_product' cannot make a product of features with an edge"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        ESCNConfig(**options)


def test_limits():
    assert ESCNConfig(lmax=2).limits() == ()
    said = " ".join(published(6, 2, 256).limits())
    for part in ("|m| > 2 of lmax 6", "not inversion", "14 by 5 points", "128 points", "20 nearest"):
        assert part in said
    (said,) = ESCNConfig(lmax=2, edge_product={"name": "so2", "parity": "any"}).limits()
    assert "rotations only" in said


MOLECULE = Structure(
    np.array([6, 8, 1, 1]), np.array([[0.0, 0, 0], [1.2, 0.1, 0], [-0.5, 0.9, 0.2], [-0.6, -0.8, 0.5]])
)


def node_energies(config, matrices):
    """Of the molecule after each of the matrices, with random weights."""
    module = config.build(STATISTICS)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: 0.6 * rng.normal(size=leaf.shape), parameter_shapes(module))
    apply = jax.jit(module.apply, compiler_options={"xla_backend_optimization_level": 0})
    results = []
    for matrix in matrices:
        graph = structure_graph(Structure(MOLECULE.atomic_numbers, MOLECULE.positions @ matrix.T), 4.0, ELEMENTS)
        graph = batch([graph], Capacity(nodes=5, neighbors=3, graphs=2), "float64")
        results.append(np.asarray(apply({"params": params}, graph, edge_vectors(graph)).node_energies))
    return results


@pytest.mark.parametrize(
    ("edge_product", "respects_inversion"),
    [
        ("clebsch_gordan", True),
        ({"name": "so2_linear", "mmax": 1, "hidden_channels": 6, "parity": "any"}, False),
    ],
    ids=["clebsch_gordan", "parity any"],
)
def test_symmetry_of_every_mixing(edge_product, respects_inversion):
    config = ESCNConfig(
        cutoff=4.0,
        lmax=2,
        channels=3,
        edge_channels=4,
        radial_basis={"name": "bessel", "count": 4},
        num_layers=2,
        edge_product=edge_product,
    )
    assert config.is_o3 == respects_inversion
    rotation = Rotation.random(rng=0).as_matrix()
    with precision("float64"):
        original, turned, mirrored = node_energies(config, [np.eye(3), rotation, -rotation])
    size = np.ptp(original)
    assert size > 0.1
    np.testing.assert_allclose(turned, original, atol=1e-11 * size)
    difference = np.abs(mirrored - original).max() / size
    assert (difference < 1e-11) if respects_inversion else (difference > 1e-6), difference
