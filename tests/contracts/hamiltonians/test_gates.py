"""The sparse gates: what the three phases compute, what is left of parameters and work, no jump at the threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.graph.pair_list import PairList
from equijax.models import HAMILTONIAN_MODELS
from equijax.nn.pair_construction import PathFactors, PathGate
from equijax.nn.pair_gate import into_pairs, keep_neighbors, keep_pairs
from equijax.ops.clebsch_gordan import coupling_paths
from equijax.ops.parity_product import ParityProduct, kept_count, parity_blocks, parity_paths, strongest_paths
from equijax.precision import precision
from equijax.structure import Structure

from ..structures import rattled
from .subject import largest_difference, sum_of_squares

METHANOL = rattled("CH3OH")


def test_paths_of_the_paper():
    assert len(coupling_paths(4, 4, 4, "natural")) == 42
    assert len(coupling_paths(4, 4, 4, "any")) == 65
    # Without the six to 4o, which no block of s, p and d shells holds.
    assert len(parity_paths(4)) == 59
    assert sum(path.block.is_natural for path in parity_paths(4)) == 42
    assert kept_count(65, 8, 0.7) == 19
    assert kept_count(175, 12, 0.7) == 52


def test_random_factors_keep_as_many_paths_as_the_strongest():
    factors, gate = PathFactors(PathGate(0.7, None), 2), np.linspace(0.5, 1.5, len(parity_paths(2)))

    def kept(key):
        found = np.asarray(factors.apply({"params": {"gate": gate}}, key, np.float32))
        blocks = ParityProduct(2).block_indices()
        squares = np.bincount(blocks, found**2)
        np.testing.assert_allclose(squares, 1.0, rtol=1e-5)  # every block has some, of unit sum of squares
        return set(np.flatnonzero(found).tolist())

    sets = [kept(key) for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))]
    assert {len(each) for each in sets} == {kept_count(len(gate), len(parity_blocks(2)), 0.7)}
    assert sets[1] == sets[2] != sets[3]
    assert sets[0] not in sets[1:]


@pytest.mark.slow
def test_random_phase_draws_other_paths_for_other_keys(gated):
    keys = [jax.random.key(seed) for seed in range(2)]
    (adaptive,), (one,), (again,), (other,) = (
        gated.evaluate([METHANOL], key=key) for key in (None, keys[0], keys[0], keys[1])
    )
    assert largest_difference(again, one) == 0
    assert largest_difference(other, one) > 1e-3
    assert largest_difference(one, adaptive) > 1e-3


@pytest.mark.slow
def test_fixed_phase_is_the_adaptive_one_with_fewer_parameters(gated):
    kept = gated.config.kept_paths(gated.params)
    module = gated.config.build(gated.statistics, kept)
    params = gated.config.without_paths(gated.params, kept)
    shapes = jax.tree.map(np.shape, gated.parameters(module))
    assert jax.tree.map(np.shape, params) == shapes
    count = kept_count(len(parity_paths(2)), len(parity_blocks(2)), 0.7)
    assert [len(paths) for paths in kept] == [count] * 4
    for part in ("self_0", "pair_1"):
        assert params["pairs"][part]["paths"]["factors"]["gate"].shape == (count,)
    inputs = gated.pack([METHANOL])
    with precision("float64"):
        fixed = jax.jit(lambda params, *inputs: gated.blocks(module, params, *inputs))(params, *inputs)
    found = gated.evaluate_packed(inputs)
    assert largest_difference(jax.tree.map(np.asarray, fixed), found) < 1e-13


def test_kept_paths_are_the_strongest_and_reach_every_block():
    paths = parity_paths(4)
    scores = np.random.default_rng(0).uniform(size=len(paths))
    count = kept_count(len(paths), 8, 0.7)
    kept = np.asarray(strongest_paths(jnp.asarray(scores), 4, count))
    assert len(set(kept.tolist())) == count == 17
    blocks = [path.block for path in paths]
    assert {blocks[i] for i in kept} == set(parity_blocks(4))
    for dropped in set(range(len(paths))) - set(kept.tolist()):
        stronger = [i for i in kept if scores[i] < scores[dropped]]
        # Only a block's best may be weaker than what is left out.
        assert all(scores[i] == max(scores[j] for j, b in enumerate(blocks) if b == blocks[i]) for i in stronger)


def test_a_sparse_product_is_part_of_the_dense_one_for_less_work():
    rng = np.random.default_rng(0)
    kept = (0, 3, 7, 10, 12)
    dense, sparse = ParityProduct(2), ParityProduct(2, kept)
    x, y = rng.normal(size=(2, 3, 9, 2))
    weights = np.zeros((3, dense.path_count, 2))
    weights[:, list(kept)] = rng.normal(size=(3, len(kept), 2))
    with precision("float64"):
        whole = dense.apply(*map(jnp.asarray, (x, y, weights)))
        part = sparse.apply(*map(jnp.asarray, (x, y, weights[:, list(kept)])))
    np.testing.assert_allclose(part, whole, atol=1e-13)
    assert sparse.flops() < 0.6 * dense.flops()


def _pairs(counts: list[int], rows: int) -> PairList:
    graph = np.full(rows, len(counts), np.int32)
    graph[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
    zeros = np.zeros(rows, np.int32)
    return PairList(zeros, zeros, np.arange(rows) < sum(counts), graph)


def test_pair_gate_counts_per_molecule():
    counts, rows = [10, 3, 1], 16
    pairs, scores = _pairs(counts, rows), np.random.default_rng(1).normal(size=rows)
    kept = keep_pairs(jnp.asarray(scores), pairs, 4, 0.7)
    found = np.asarray(into_pairs(jnp.ones((len(kept.rows), 1)), kept))[:, 0]
    start = 0
    for count, expected in zip(counts, (3, 1, 1), strict=True):
        own = slice(start, start + count)
        assert set(np.flatnonzero(found[own])) == set(np.argsort(-scores[own])[:expected])
        start += count
    assert found[13] == 1  # a single pair has none to be compared with
    assert (found[14:] == 0).all()
    assert len(kept.rows) < rows


def test_equal_scores_are_treated_alike_and_the_threshold_is_no_jump():
    pairs = _pairs([4], 5)
    for scores in ([1.0, 1.0, 0.0, 0.0, 9.0], [1.0, 1.0 - 1e-6, 0.0, 0.0, 9.0], [1.0 - 1e-6, 1.0, 0.0, 0.0, 9.0]):
        kept = keep_pairs(jnp.asarray(scores), pairs, 2, 0.75)
        assert np.abs(into_pairs(jnp.ones((len(kept.rows),)), kept)).max() < 1e-5


def test_neighbor_gate_keeps_the_best_of_each_atom():
    scores = jnp.asarray([[3.0, 1.0, 2.0, 9.0], [1.0, 9.0, 9.0, 9.0]])
    mask = jnp.asarray([[True, True, True, False], [True, False, False, False]])
    slots, weights = keep_neighbors(scores, mask, 0.7)
    assert slots.shape == (2, 2)
    assert slots[:, 0].tolist() == [0, 0]
    np.testing.assert_allclose(weights, [[np.tanh(0.5), 0.0], [1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("name", HAMILTONIAN_MODELS)
def test_config_round_trip(name):
    config = HAMILTONIAN_MODELS[name](cutoff=7.0)
    assert HAMILTONIAN_MODELS[name].model_validate(config.model_dump(mode="json")) == config
    assert config.name == name
    assert all(isinstance(sentence, str) for sentence in config.limits())


@pytest.mark.slow
def test_gradients_are_finite_for_linear_molecules_single_atoms_and_padding(gated):
    line = Structure(np.array([8, 6, 8]), np.array([[0.0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]))
    inputs = gated.pack([line, Structure(np.array([8]), np.zeros((1, 3))), METHANOL])
    with precision("float64"):
        gradient = jax.jit(jax.grad(lambda params: sum_of_squares(gated.blocks(gated.module, params, *inputs))))
        found = gradient(gated.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    gates = found["pairs"]["pair_0"]["paths"]["factors"]["gate"]
    assert np.count_nonzero(gates) > 1
