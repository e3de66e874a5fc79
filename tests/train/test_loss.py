"""Losses against numbers worked out by hand, and their independence of padding and of how a set is cut into batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from equijax.graph.padding import Capacity
from equijax.potential.derivatives import Prediction
from equijax.structure import Structure
from equijax.train.batches import labelled_batch, labelled_frame
from equijax.train.config import EnergyTerm, LossConfig, LossTerm
from equijax.train.loss import loss_sums, loss_weights, penalty, total_loss
from tests.train.toy_training import ATOMIC_ENERGIES, molecules

ELEMENTS = (1, 6, 8)


def frames(structures):
    return [labelled_frame(s, 4.0, ELEMENTS, ATOMIC_ENERGIES) for s in structures]


def fake_prediction(batch, seed=0):
    """Numbers that depend on the real rows only; ghost rows hold NaN."""
    rng = np.random.default_rng(seed)
    graphs, nodes = int(batch.graph.graph_mask.sum()), int(batch.graph.node_mask.sum())
    energy = np.full(batch.labels["energy"].value.shape, np.nan)
    forces = np.full(batch.labels["forces"].value.shape, np.nan)
    stress = np.full(batch.labels["stress"].value.shape, np.nan)
    energy[:graphs], forces[:nodes] = rng.normal(size=graphs), rng.normal(size=(nodes, 3))
    stress[:graphs] = rng.normal(size=(graphs, 3, 3))
    return Prediction(energy, energy, forces, forces, stress)


@pytest.mark.parametrize(
    ("term", "error", "expected"),
    [
        (LossTerm(kind="mse"), 0.3, 0.09),
        (LossTerm(kind="mae"), -0.3, 0.3),
        (LossTerm(kind="huber", delta=0.5), 0.3, 0.045),
        (LossTerm(kind="huber", delta=0.1), -0.3, 0.1 * (0.3 - 0.05)),
    ],
)
def test_penalties(term, error, expected):
    assert float(penalty(term, np.float32(error), np.float32(0))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("norm", "factor"), [(99.0, 1.0), (150.0, 0.7), (250.0, 0.4), (1000.0, 0.1)])
def test_conditional_huber_shrinks_delta_for_large_forces(norm, factor):
    term = LossTerm(kind="conditional_huber", delta=0.5)
    reference = np.array([[0.0, norm * 0.6, norm * 0.8]], np.float32)
    value = penalty(term, np.full((1, 3), 2.0, np.float32), reference)
    delta = 0.5 * factor
    np.testing.assert_allclose(np.asarray(value), delta * (2.0 - delta / 2), rtol=1e-6)


def test_masked_labels_and_weights_by_hand():
    a, b, c = molecules(3)
    b = dataclasses.replace(b, labels={"energy": b.labels["energy"]}, info={"energy_weight": 2.0})
    c = dataclasses.replace(c, labels={"forces": c.labels["forces"]}, info={"config_weight": 0.5})
    parts = frames([a, b, c])
    batch = labelled_batch(parts, Capacity(24, 8, 6), "float64")
    prediction = fake_prediction(batch)
    loss = LossConfig(energy=EnergyTerm(weight=2.0), forces=LossTerm(weight=3.0, kind="mae"))
    sums = {key: float(value) for key, value in loss_sums(prediction, batch, loss).items()}

    errors = [(prediction.energy[i] - parts[i].labels["energy"]) / parts[i].num_atoms for i in (0, 1)]
    force_a = prediction.forces[:4] - a.labels["forces"]
    force_c = prediction.forces[9:15] - c.labels["forces"]
    energy_part = (errors[0] ** 2 + 2.0 * errors[1] ** 2) / 2
    force_part = (np.abs(force_a).sum() + 0.5 * np.abs(force_c).sum()) / (3 * 10)
    assert sums["energy_count"] == 2
    assert sums["forces_count"] == 30
    assert total_loss(sums, loss_weights(loss)) == pytest.approx(2 * energy_part + 3 * force_part, rel=1e-5)


def test_energy_labels_lose_nothing_to_the_atomic_energies():
    [structure] = molecules(1)
    [frame] = frames([structure])
    interaction = float(structure.labels["energy"]) - sum(ATOMIC_ENERGIES[int(z)] for z in structure.atomic_numbers)
    assert abs(float(structure.labels["energy"])) > 1000
    batch = labelled_batch([frame], Capacity(8, 8, 2), "float32")
    assert batch.labels["energy"].value[0] == np.float32(interaction)


def test_any_cut_into_batches_and_any_padding_gives_the_same_loss():
    parts = frames(molecules(7))
    loss = LossConfig(energy=EnergyTerm(weight=1), forces=LossTerm(weight=10))
    rng = np.random.default_rng(0)
    truth = [(rng.normal(), rng.normal(size=(p.num_atoms, 3))) for p in parts]

    def total(groups, spare):
        totals = {}
        for group in groups:
            nodes = sum(parts[i].num_atoms for i in group)
            batch = labelled_batch(
                [parts[i] for i in group], Capacity(nodes + 1 + spare, 8, len(group) + 1 + spare), "float64"
            )
            prediction = fake_prediction(batch)
            prediction.energy[: len(group)] = [truth[i][0] for i in group]
            prediction.forces[:nodes] = np.concatenate([truth[i][1] for i in group])
            for key, value in loss_sums(prediction, batch, loss).items():
                totals[key] = totals.get(key, 0.0) + float(value)
        return float(total_loss(totals, loss_weights(loss)))

    whole = total([range(7)], 0)
    assert total([[0, 1, 2], [3, 4, 5], [6]], 0) == pytest.approx(whole, rel=2e-6)
    assert total([[6, 2], [1, 0, 3, 5, 4]], 9) == pytest.approx(whole, rel=2e-6)


def test_a_stress_label_without_a_volume_is_left_out():
    [structure] = molecules(1)
    labelled = dataclasses.replace(structure, labels={**structure.labels, "stress": np.eye(3)})
    assert "stress" not in frames([labelled])[0].labels
    periodic = Structure(
        labelled.atomic_numbers, labelled.positions, 8 * np.eye(3), (True, True, True), labelled.labels
    )
    np.testing.assert_array_equal(frames([periodic])[0].labels["stress"], np.eye(3))


def test_a_weight_that_is_no_number_names_the_frame():
    [structure] = molecules(1)
    with pytest.raises(ValueError, match=r"toy.xyz frame 0: energy_weight: is 'big'; expected a number"):
        frames([dataclasses.replace(structure, info={"energy_weight": "big"})])
