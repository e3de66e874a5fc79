"""Averages of tensors in the frame of a molecule: alignment, errors, zero-field parameters, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.md.tensor_average import rotated, rotation_onto, tensor_average, zero_field_parameters
from equijax.models.targets import TargetConfig
from equijax.structure import Structure
from tests.contracts.structures import methanol, random_rotation, transformed

QUADRUPOLE = np.diag([1.0, 2.0, -3.0])


def tumbling(count=40, noise=0.0):
    """Methanol turned at random, with the tensor of each frame: that of the first, turned along."""
    rng = np.random.default_rng(0)
    first = methanol()
    frames, tensors = [], []
    for seed in range(count):
        turn = np.eye(3) if seed == 0 else random_rotation(seed)
        frames.append(transformed(first, turn))
        wiggle = noise * rng.normal(size=(3, 3))
        tensors.append(rotated(QUADRUPOLE + wiggle + wiggle.T - np.eye(3) * 2 / 3 * np.trace(wiggle), turn))
    return frames, tensors


def stand_in(tensors, **options):
    """What `tensor_average` asks of a potential: targets, and their values."""
    config = TargetConfig(**({"tensor": "ij=ji", "traceless": True, "unit": "e Å^2"} | options))
    return SimpleNamespace(
        targets={"quadrupole": config}, predict=lambda frames, names, dtype: [{"quadrupole": t} for t in tensors]
    )


def test_the_best_rotation_is_found_and_is_proper():
    fixed = np.random.default_rng(0).normal(size=(5, 3))
    turn = random_rotation(7)
    found, distance = rotation_onto(fixed @ turn.T + [1.0, 2.0, 3.0], fixed)
    np.testing.assert_allclose(found, turn.T, atol=1e-13)
    assert distance < 1e-13
    mirrored, distance = rotation_onto(-fixed, fixed)
    assert np.linalg.det(mirrored) == pytest.approx(1.0)
    assert distance > 0.1


def test_a_tumbling_molecule_keeps_its_tensor():
    frames, tensors = tumbling()
    found = tensor_average(stand_in(tensors), frames, "quadrupole")
    np.testing.assert_allclose(found.mean, QUADRUPOLE, atol=1e-12)
    assert np.abs(found.error).max() < 1e-12
    assert np.abs(found.unaligned).max() < 0.5 * np.abs(QUADRUPOLE).max()
    np.testing.assert_allclose(found.principal_values, [-3.0, 1.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(found.axes @ np.diag(found.principal_values) @ found.axes.T, QUADRUPOLE, atol=1e-12)
    assert found.zero_field == pytest.approx({"D": -4.5, "E": -0.5, "E/D": 1 / 9})
    assert found.rmsd[1] < 1e-12


def test_principal_values_are_of_the_mean_and_errors_those_of_blocks():
    frames, tensors = tumbling(400, noise=0.6)
    found = tensor_average(stand_in(tensors), frames, "quadrupole", blocks=20)
    of_each = np.mean([np.linalg.eigvalsh(t) for t in tensors], axis=0)
    # Fluctuations push eigenvalues apart; the mean tensor does not feel them.
    assert of_each[1] < found.principal_values[1] < of_each[2] > found.principal_values[2]
    assert (np.abs(found.mean - QUADRUPOLE) < 4 * found.error + 1e-12).all()
    # Off-diagonal elements have the standard deviation √2 x 0.6 over √400.
    assert found.error[0, 1] == pytest.approx(2**0.5 * 0.6 / 20, rel=0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, -1.0, 2.0], {"D": 3.0, "E": 0.0, "E/D": 0.0}),
        ([-2.0, 1.0, 1.0], {"D": -3.0, "E": 0.0, "E/D": 0.0}),
        ([-1.0, 0.0, 1.0], {"D": 1.5, "E": 0.5, "E/D": 1 / 3}),
        ([0.0, 0.0, 0.0], {"D": 0.0, "E": 0.0, "E/D": 0.0}),
    ],
)
def test_zero_field_parameters(values, expected):
    found = zero_field_parameters(np.array(values))
    assert {name: abs(value) for name, value in found.items()} == pytest.approx(
        {name: abs(value) for name, value in expected.items()}
    )
    assert found["E/D"] >= 0


def line(count=3):
    positions = np.outer(np.arange(count), [0.0, 0.0, 1.2])
    return Structure(np.array([8, 6, 8]), positions, file="co2.xyz", frame=0)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([line()] * 20, {}, r"co2.xyz frame 0.*the atoms lie on a line"),
        ([methanol()] * 19, {}, "19 frames are too few for 10 blocks; expected 20"),
        ([methanol(), line()] * 10, {}, "co2.xyz frame 0: OCO after COH4"),
        ([methanol()] * 20, {"per": "atom"}, "'quadrupole' is not a Cartesian tensor per system of this model"),
        (
            [Structure(np.array([6, 1, 8]), np.eye(3), np.eye(3) * 9, (True,) * 3, file="box.xyz", frame=0)] * 20,
            {},
            "box.xyz frame 0: is periodic",
        ),
    ],
    ids=["line", "few", "mixed", "per-atom", "periodic"],
)
def test_what_has_no_frame_of_its_own(frames, options, message):
    with pytest.raises(EquijaxError, match=message):
        tensor_average(stand_in([QUADRUPOLE] * len(frames), **options), frames, "quadrupole")
