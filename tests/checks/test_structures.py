"""Structures that checks make, frames they choose, and the shape of dimer curves."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.checks.dimers import Dimer, element_pairs
from equijax.checks.rows import Row, overall
from equijax.checks.structures import choose_frames, made_structure, random_cluster, random_crystal
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure


def test_heaps_hold_all_elements_at_sane_distances():
    cluster = random_cluster((1, 6, 8, 29), seed=3)
    assert set(cluster.atomic_numbers.tolist()) == {1, 6, 8, 29}
    distances = np.linalg.norm(cluster.positions[:, None] - cluster.positions[None], axis=-1)
    assert distances[np.triu_indices(len(cluster), 1)].min() > 0.5
    for elements in ((1, 6, 8), (55,), tuple(range(1, 90))):
        crystal = random_crystal(elements, 5.0, seed=0)
        edges = neighbor_list(crystal, 5.0)
        assert set(crystal.atomic_numbers.tolist()) <= set(elements)
        assert 4 <= np.bincount(edges.receivers).max() <= 45


@pytest.mark.parametrize(
    ("elements", "expected"),
    [((1, 6, 7, 8), "C2H6O of"), ((29, 79), "Cu crystal"), ((14,), "Si crystal"), ((86,), "a heap")],
)
def test_a_structure_of_the_elements(elements, expected):
    made = made_structure(elements, 0)
    assert set(made.atomic_numbers.tolist()) <= set(elements)
    assert len(made) >= 3
    assert made.file
    if expected != "C2H6O of":
        assert made.file.startswith(expected)


def test_frames_that_bring_elements_come_first():
    def frame(*numbers):
        return Structure(np.array(numbers), np.arange(3.0 * len(numbers)).reshape(-1, 3))

    frames = [frame(1), frame(1, 1), frame(1, 1), frame(6, 1), frame(1, 1), frame(8, 8), *[frame(1, 1)] * 4]
    assert [i for i, _ in choose_frames(frames)] == [1, 3, 5]
    assert [i for i, _ in choose_frames([frame(*[6] * 300), frame(6, 6)])] == [1]
    assert [i for i, _ in choose_frames([frame(*[6] * 300)])] == [0]


def test_wells_of_a_curve():
    r = np.linspace(0.5, 5, 91)

    def dimer(energy):
        return Dimer(("C", "C"), r, energy, -np.gradient(energy, r), wall=1.0)

    morse = (1 - np.exp(-2 * (r - 1.5))) ** 2 - 1
    assert dimer(morse).wells == [20]
    assert dimer(morse).attraction == 0
    assert dimer(morse).second_depth == 0
    shoulder = morse - 0.4 * np.exp(-8 * (r - 3) ** 2)
    assert len(dimer(shoulder).wells) == 2
    # From -0.50 at 3 Å over -0.30 at 2.5 Å.
    assert dimer(shoulder).second_depth == pytest.approx(0.193, abs=0.002)
    hole = morse - 600 * np.exp(-4 * r)
    assert dimer(hole).wells[0] == 0
    assert dimer(hole).attraction > 1
    assert np.isnan(dimer(np.where(r < 0.8, np.nan, morse)).attraction)


def test_pairs_of_elements_seen_come_first_when_there_are_many():
    pairs, total = element_pairs(tuple(range(1, 90)), [26, 8])
    assert total == 89 * 90 // 2
    assert len(pairs) == 60
    assert {(8, 8), (8, 26), (26, 26)} <= set(pairs)
    assert element_pairs((1, 8), []) == ([(1, 1), (1, 8), (8, 8)], 3)


def test_verdicts():
    rows = [Row("a", 1.0, 2.0, ""), Row("b", 3.0, 2.0, "", "warn"), Row("c", 9.0, None, "")]
    assert [row.verdict for row in rows] == ["pass", "warn", "info"]
    assert overall(rows) == "warn"
    broken = Row("d", float("nan"), None, "", "warn")
    assert broken.verdict == "fail"
    assert overall([*rows, broken]) == "fail"
    assert broken.to_json()["value"] is None
    assert overall([rows[0], rows[2]]) == "pass"
