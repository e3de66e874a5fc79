"""EquiformerV2: published sizes, what its options refuse and admit, and the published form beside the contracts."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from equijax.experiment import ExperimentConfig
from equijax.graph.batching import batch, structure_graph
from equijax.models import EquiformerV2Config, ModelStatistics
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.potential import Potential, parameter_shapes
from equijax.precision import precision
from equijax.structure import Structure
from tests.contracts.cases import BASE
from tests.contracts.structures import ethanol, random_rotation, transformed

PUBLISHED = {
    "parity": "any",
    "forces": "direct",
    "envelope": "none",
    "isolated_atoms": "learned",
    "norm": "layer_norm_sh",
    "feed_forward": "grid_mlp",
    "radial_basis": "gaussian",
}


@pytest.mark.parametrize(
    ("lmax", "mmax", "num_layers", "published"),
    [(4, 2, 8, 31_058_690), (6, 2, 12, 83_164_802), (6, 3, 20, 153_602_690)],
)
def test_published_parameter_counts(lmax, mmax, num_layers, published):
    channels, heads, alpha, value, hidden = 128, 8, 64, 16, 64
    config = EquiformerV2Config(
        cutoff=12.0,
        channels=channels,
        lmax=lmax,
        mmax=mmax,
        num_layers=num_layers,
        attention={
            "heads": heads,
            "hidden_channels": hidden,
            "alpha_channels": alpha,
            "value_channels": value,
            "activation": "separable_s2",
        },
        feed_forward_channels=128,
        edge_channels=128,
        **PUBLISHED,
    )
    # A row for each of 90 elements, as published.
    module = config.build(ModelStatistics(tuple(range(1, 91)), avg_num_neighbors=23.4))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(module)))
    # fairchem keeps weights that reach no result: in the energy head all but the path of the scalars, ...
    energy_head = (lmax + 1) * channels * 128 + 128 + 3 * 128**2 + lmax * 128
    # ... in the force head all degrees but 1 of the last two maps.
    values = heads * value
    force_head = lmax * values + 1 + lmax * values * ((lmax + 1) * hidden + 1) + 2 * (lmax - 1) * values * lmax * hidden
    force_head += sum(2 * values * hidden * (lmax + 1 - m) ** 2 for m in range(2, mmax + 1))
    assert count + energy_head + force_head == published


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mmax": 4}, "mmax is 4; expected at most lmax, 3"),
        ({"feed_forward": {"name": "grid_mlp", "resolution": 6}}, "feed_forward: resolution is 6; expected at least 8"),
        ({"envelope": "none"}, "expected envelope: polynomial, or forces: direct"),
        ({"max_neighbors": 20}, "expected none, or forces: direct"),
        ({"drop_path_rate": 0.1}, "drop_path_rate: training draws no random numbers"),
        ({"edge_product": "vector_signal"}, "'vector_signal' cannot make a product of features with an edge"),
        ({"edge_product": "so2", "parity": "any"}, "edge_product: goes with forces: gradient and parity: natural only"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        EquiformerV2Config(**options)


def test_limits_are_those_of_the_options():
    assert EquiformerV2Config().limits() == ()
    assert EquiformerV2Config().is_conservative
    assert EquiformerV2Config().is_o3
    published = EquiformerV2Config(**PUBLISHED, max_neighbors=20, structure_shift=-0.7)
    assert not published.is_conservative
    assert not published.is_o3
    text = " ".join(published.limits())
    for word in (
        "predicted directly",
        "feed_forward",
        "parity any",
        "envelope none",
        "max_neighbors 20",
        "structure_shift",
    ):
        assert word in text
    # The grid of 18 x 18 points is good at low degrees and not at 6.
    assert "about 1e-05" in text
    on_grid = EquiformerV2Config(attention={"activation": "separable_s2"})
    assert "energies jump where an edge crosses" in " ".join(on_grid.limits())
    assert "about 2e-02" in " ".join(EquiformerV2Config(lmax=6, feed_forward="grid_mlp").limits())


@functools.cache
def direct_potential():
    config = EquiformerV2Config(
        cutoff=4.0,
        channels=6,
        lmax=2,
        num_layers=1,
        attention={"heads": 2, "hidden_channels": 4, "alpha_channels": 4, "value_channels": 3, "activation": "gate"},
        feed_forward_channels=6,
        edge_channels=6,
        max_neighbors=4,
        structure_shift=-0.7,
        **{**PUBLISHED, "feed_forward": "gate", "radial_basis": {"name": "bessel", "count": 6}},
    )
    statistics = ModelStatistics((1, 6, 8), avg_num_neighbors=5.0, scale=2.0)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: 0.6 * rng.normal(size=leaf.shape), shapes)
    return Potential(config, statistics, dict.fromkeys((1, 6, 8), 0.0), params, dtype="float64")


def test_direct_forces_turn_with_the_molecule():
    """With gates, the published form is exact under rotations, and not under inversion."""
    turn = random_rotation(3)
    molecule = ethanol()
    atom = Structure(np.array([6]), np.zeros((1, 3)))
    variants = [molecule, transformed(molecule, turn), transformed(molecule, -turn), atom]
    first, second, inverted, alone = direct_potential().predict(variants, ("energy", "forces"))
    size = np.abs(first["forces"]).max()
    assert abs(second["energy"] - first["energy"]) < 1e-10
    assert np.abs(second["forces"] - first["forces"] @ turn.T).max() < 1e-10 * size
    assert np.abs(inverted["forces"] + first["forces"] @ turn.T).max() > 1e-3 * size
    assert (alone["forces"] == 0).all()
    # Other batches and other padding change nothing.
    again = direct_potential().predict(molecule, ("energy", "forces"))
    assert abs(again["energy"] - first["energy"]) < 1e-12
    assert np.abs(again["forces"] - first["forces"]).max() < 1e-12 * size


@pytest.mark.slow
def test_every_weight_of_the_published_form_reaches_energies_or_forces():
    potential = direct_potential()
    molecules = [ethanol(), Structure(np.array([6]), np.zeros((1, 3)))]
    graph = batch([structure_graph(s, potential.cutoff, potential.elements) for s in molecules], BASE, "float64")

    def loss(params):
        found = energy_and_derivatives(potential.module, params, graph)
        return jnp.sum(jnp.sin(found.energy)) + jnp.sum(jnp.sin(found.forces))

    with precision("float64"):
        gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(potential.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        assert (np.abs(leaf) > 0).all(), name


def test_only_the_nearest_neighbours_count():
    """With max_neighbors 4, the fifth neighbour is not seen."""
    positions = np.array([[0.8 * i, 0.05 * i * i, 0.0] for i in range(5)] + [[-3.6, 0.0, 0.0]])
    others = {z: Structure(np.array([6] * 5 + [z]), positions) for z in (1, 8)}
    found = {z: direct_potential().predict(structure, ("energies", "forces")) for z, structure in others.items()}
    # Atom 0 has four nearer neighbours than the last atom, which has no neighbour but atom 0.
    for key in ("energies", "forces"):
        np.testing.assert_array_equal(found[1][key][:5], found[8][key][:5])
        assert (found[1][key][5] != found[8][key][5]).any()


def test_an_experiment_may_name_options_shortly():
    model = {"name": "equiformer_v2", "feed_forward": "gate", "norm": "rms_norm_sh"}
    experiment = ExperimentConfig.model_validate({"dataset": {"train": "x.xyz"}, "model": model})
    assert experiment.model == EquiformerV2Config(feed_forward={"name": "gate"})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("clebsch_gordan", "so2", "gaunt_grid", "cp")]
)
def test_messages_of_any_edge_product(name):
    """Energies and forces under an improper rotation, forces as a derivative, in float64."""
    config = EquiformerV2Config(
        cutoff=3.5,
        channels=4,
        lmax=2,
        num_layers=2,
        attention={"heads": 2, "hidden_channels": 4, "alpha_channels": 2, "value_channels": 2},
        feed_forward_channels=4,
        edge_channels=4,
        edge_product=name,
    )
    assert config.is_o3
    assert bool(config.limits()) == (name in ("gaunt_grid", "cp"))
    statistics = ModelStatistics((1, 6, 8), 4.0, scale=2.0, shift=0.3)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
    potential = Potential(config, statistics, {1: 0.0, 6: 0.0, 8: 0.0}, params, dtype="float64")
    start, matrix = ethanol(), -random_rotation(3)
    direction = rng.normal(size=start.positions.shape)
    step = 1e-5
    structures = [start, transformed(start, matrix)]
    structures += [dataclasses.replace(start, positions=start.positions + s * step * direction) for s in (-1, 1)]
    here, turned, before, after = potential.predict(structures, ("energy", "forces"))
    assert np.abs(here["forces"]).max() > 1e-4
    assert abs(turned["energy"] - here["energy"]) < 1e-10 * max(1.0, abs(here["energy"]))
    np.testing.assert_allclose(turned["forces"], here["forces"] @ matrix.T, atol=1e-10 * np.abs(here["forces"]).max())
    slope = (after["energy"] - before["energy"]) / (2 * step)
    assert slope == pytest.approx(-np.sum(here["forces"] * direction), rel=1e-5, abs=1e-9)
