"""Every kind of target head on every model: symmetries, sums, positivity, padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from equijax.graph.batching import batch, structure_graph
from equijax.irreps.voigt import to_mandel_matrix
from equijax.models import MODELS
from equijax.potential.evaluator import pad_vectors
from equijax.potential.prediction import batch_vectors
from equijax.structure import Structure

from .cases import CUTOFF, ELEMENTS
from .structures import ethanol, joined, methanol, moved, random_rotation, transformed
from .subject import deviation
from .target_cases import CAPACITY, CORE, TARGETS, irreps_matrix, statistics_of, target_subject

SYMMETRY = 1e-10
ATOM = Structure(np.array([8]), np.zeros((1, 3)))


def _rows():
    """One head of every class on MACE; slow: on all models, and all heads. One worker each: tests share programs."""
    rows = []
    for name in MODELS:
        for width, heads in (("core", CORE), ("all", tuple(TARGETS))):
            marks = [pytest.mark.xdist_group(f"targets-{name}-{width}")]
            if (name, width) != ("mace", "core"):
                marks.append(pytest.mark.slow)
            rows.append(pytest.param((name, heads), id=f"{name}-{width}", marks=marks))
    return rows


@pytest.fixture(scope="module", params=_rows())
def subject(request):
    return target_subject(*request.param)


def molecules():
    return [ethanol(), methanol(), ATOM]


def assert_same(found, expected, tolerance=SYMMETRY, sizes=None):
    """`sizes`: what each target is compared with, where what is expected may vanish but for rounding."""
    for name, value in expected.items():
        assert deviation(found[name], value, None if sizes is None else sizes[name]) <= tolerance, name


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "improper"])
def test_targets_turn_with_the_structure(subject, sign):
    matrix = sign * random_rotation(5)
    before = subject.evaluate(molecules())
    after = subject.evaluate([transformed(s, matrix) for s in molecules()])
    sizes = {name: max(np.abs(found[name]).max() for found in before) for name in subject.targets}
    for one, other in zip(before, after, strict=True):
        turned = {n: one[n] @ irreps_matrix(c.components, matrix).T for n, c in subject.targets.items()}
        assert_same(other, turned, sizes=sizes)


def test_every_irrep_has_something_to_say(subject):
    """Zeros would pass all symmetries."""
    found = subject.evaluate([ethanol()])[0]
    for name, config in subject.targets.items():
        for block, scale in zip(config.components.blocks(), statistics_of(config, subject.name).scales, strict=True):
            assert np.abs(found[name][..., block.columns]).max() > 1e-5 * scale, f"{name} {block.irrep}"


def test_targets_do_not_depend_on_origin_order_or_company(subject):
    together = subject.evaluate(molecules())
    (alone,) = subject.evaluate([methanol()])
    assert_same(together[1], alone, tolerance=1e-11)
    (far,) = subject.evaluate([moved(methanol(), np.array([3.0, -70.0, 11.0]))])
    assert_same(far, alone)
    order = np.random.default_rng(1).permutation(len(methanol()))
    shuffled = Structure(methanol().atomic_numbers[order], methanol().positions[order])
    (found,) = subject.evaluate([shuffled])
    places = {"system": (), "atom": (order,), "pair": np.ix_(order, order)}
    assert_same(found, {n: alone[n][places[c.per]] for n, c in subject.targets.items()})


def test_two_far_molecules_add_up(subject):
    one, other = ethanol(), moved(methanol(), np.array([40.0, 0.0, 0.0]))
    (both,) = subject.evaluate([joined(one, other)])
    first, second = subject.evaluate([one, other])
    expected = {}
    for name, config in subject.targets.items():
        if config.per == "atom":
            expected[name] = np.concatenate([first[name], second[name]])
        elif config.per == "system" and config.reduce == "sum":
            expected[name] = first[name] + second[name]
        elif config.per == "system" and config.form == "direct":
            expected[name] = (9 * first[name] + 6 * second[name]) / 15
    assert_same(both, expected)
    assert not both["pair_matrix"][:9, 9:].any()
    np.testing.assert_allclose(both["pair_matrix"][9:, 9:], second["pair_matrix"], atol=SYMMETRY)


def test_positive_forms_are_positive_on_random_weights(subject):
    crystal = Structure(np.array([6, 1]), np.array([[0.1, 0, 0], [1.2, 0.9, 0.5]]), np.eye(3) * 2.9, (True,) * 3)
    graphs = [structure_graph(s, CUTOFF, ELEMENTS) for s in (ethanol(), methanol(), crystal, ATOM)]
    graph = batch(graphs, CAPACITY, "float64")
    found = subject.evaluate_graph(graph, pad_vectors(graph, *batch_vectors(graphs)))
    for name, config in subject.targets.items():
        if config.form not in ("square", "exponential"):
            continue
        tensors = config.cartesian.to_cartesian(found[name][:4])
        matrices = tensors if tensors.ndim == 3 else to_mandel_matrix(tensors)
        eigenvalues = np.linalg.eigvalsh(matrices)
        # A square may be singular, to the rounding of its largest eigenvalue.
        floor = -1e-13 * eigenvalues[:, -1] if config.form == "square" else 0.0
        assert (eigenvalues[:, 0] > floor).all(), name


def test_an_isolated_atom_has_what_its_element_adds(subject):
    (found,) = subject.evaluate([ATOM])
    for name, config in subject.targets.items():
        assert np.isfinite(found[name]).all()
        if config.form in ("square", "exponential"):
            # f(A), the isotropic mean of the labels.
            rows = np.array([b.irrep.l == 0 for b in config.components.blocks() for _ in range(b.irrep.dim)])
            np.testing.assert_allclose(found[name], np.where(rows, 1.7, 0.0), atol=1e-12)
            continue
        expected = np.zeros(config.components.dim)
        scalars = [b.columns.start for b in config.components.blocks() if str(b.irrep) == "0e"]
        expected[scalars] = [row[ELEMENTS.index(8)] for row in statistics_of(config, subject.name).shifts]
        np.testing.assert_allclose(found[name].reshape(-1), expected, atol=1e-12)


def test_padding_is_zero_and_nan_in_it_changes_nothing(subject):
    graphs = [structure_graph(s, CUTOFF, ELEMENTS) for s in molecules()]
    graph = batch(graphs, CAPACITY, "float64")
    vectors = pad_vectors(graph, *batch_vectors(graphs))
    positions, cell, shifts = graph.positions.copy(), graph.cell.copy(), graph.shifts.copy()
    positions[~graph.node_mask], cell[~graph.graph_mask], shifts[~graph.neighbor_mask] = np.nan, np.nan, np.nan
    dirty = dataclasses.replace(graph, positions=positions, cell=cell, shifts=shifts)
    clean, found = subject.evaluate_graph(graph, vectors), subject.evaluate_graph(dirty, vectors)
    masks = {"system": graph.graph_mask, "atom": graph.node_mask, "pair": graph.neighbor_mask}
    for name, config in subject.targets.items():
        np.testing.assert_array_equal(found[name], clean[name])
        assert not found[name][~masks[config.per]].any(), name
