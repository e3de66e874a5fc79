"""The surrogate near an anchor: exact there, covariant, with forces that are the gradient of its energy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from equijax.models.boost import Boost, BoostConfig, Edges, FeatureStatistics
from equijax.potential.boost import anchored, near_anchor, surrogate_energies
from equijax.precision import precision

ATOMS = 5
IRREPS = "3x0e+2x1o"
CONFIG = BoostConfig(cutoff=3.0, channels=4, lmax=2, hidden=6, num_bessel=4, reference_lmax=1)
MODULE = Boost(CONFIG, IRREPS, 2)
OTHERS = np.array([[j for j in range(ATOMS) if j != i] for i in range(ATOMS)])
REVERSE = np.array([[j * (ATOMS - 1) + (i if i < j else i - 1) for j in OTHERS[i]] for i in range(ATOMS)])
EDGES = Edges(OTHERS, np.ones_like(OTHERS, bool), REVERSE)


@pytest.fixture(scope="module")
def case():
    """A reference with features, the base model's energy and forces there, and parameters."""
    rng = np.random.Generator(np.random.Philox(3))
    reference = rng.normal(0, 1.1, (ATOMS, 3))
    forces = rng.normal(size=(ATOMS, 3))
    found = {
        "reference": reference,
        "moved": reference + rng.normal(0, 0.1, (ATOMS, 3)),
        "features": rng.normal(size=(ATOMS, 9)),
        "species": np.array([0, 1, 1, 0, 1]),
        "statistics": FeatureStatistics(rng.normal(size=(2, 3)), np.full((2, 3), 0.7), np.array([0.5, 2.0])),
        "forces": forces - forces.mean(axis=0),
    }
    with precision("float64"):
        vectors = vectors_of(reference)
        features, species, statistics = found["features"], found["species"], found["statistics"]
        initial = jax.jit(lambda key: MODULE.init(key, features, species, statistics, EDGES, vectors, method="initial"))
        found["params"] = jax.tree.map(np.asarray, initial(jax.random.key(0))["params"])
    return found


def vectors_of(positions):
    return positions[:, None] - positions[OTHERS]


@jax.jit
def compiled(params, statistics, species, features, reference, forces, moved):
    context = MODULE.apply({"params": params}, features, species, statistics, method="context")
    first = surrogate_energies(MODULE, params, context, EDGES, vectors_of(reference))
    anchor = anchored(context, *first, reference[None], np.array([-2.5]), forces[None])
    energy, predicted = near_anchor(
        anchor, *surrogate_energies(MODULE, params, context, EDGES, vectors_of(moved)), moved[None]
    )
    return energy[0], predicted[0], first[0]


def boosted(case, **changes):
    """Energy and forces at `moved`, and the energies of the surrogate itself at the reference."""
    names = ("params", "statistics", "species", "features", "reference", "forces", "moved")
    with precision("float64"):
        return [np.asarray(part) for part in compiled(*[(case | changes)[name] for name in names])]


def test_the_anchor_has_energy_and_forces_of_the_base_model(case):
    energy, forces, own = boosted(case, moved=case["reference"])
    assert energy == -2.5
    assert np.abs(own).max() > 0.01  # the surrogate itself is not zero there
    np.testing.assert_allclose(forces, case["forces"], atol=1e-13)


def test_forces_are_minus_the_gradient(case):
    _, forces, _ = boosted(case)
    for atom, axis in ((0, 0), (2, 1), (4, 2)):
        step = np.zeros((ATOMS, 3))
        step[atom, axis] = 1e-5
        up, down = (boosted(case, moved=case["moved"] + sign * step)[0] for sign in (1, -1))
        assert forces[atom, axis] == pytest.approx((down - up) / 2e-5, abs=1e-8)


def test_everything_turns_together(case):
    energy, forces, _ = boosted(case)
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    if np.linalg.det(turn) > 0:
        turn = -turn  # with an inversion: the vectors among the features are polar
    features = np.concatenate(
        [case["features"][:, :3], (case["features"][:, 3:].reshape(-1, 2, 3) @ turn.T).reshape(-1, 6)], axis=1
    )
    shift = np.array([5.0, -2.0, 1.0])
    turned = {name: case[name] @ turn.T + shift for name in ("reference", "moved")}
    again, turned_forces, _ = boosted(case, features=features, forces=case["forces"] @ turn.T, **turned)
    assert again == pytest.approx(energy, abs=1e-12)
    np.testing.assert_allclose(turned_forces, forces @ turn.T, atol=1e-12)


def test_atoms_have_no_order(case):
    energy, forces, _ = boosted(case)
    order = np.array([3, 0, 4, 2, 1])
    parts = {name: case[name][order] for name in ("reference", "moved", "features", "species", "forces")}
    again, permuted, _ = boosted(case, **parts)
    assert again == pytest.approx(energy, abs=1e-12)
    np.testing.assert_allclose(permuted, forces[order], atol=1e-12)


def test_a_translation_from_the_anchor_changes_nothing(case):
    energy, forces, _ = boosted(case)
    again, translated, _ = boosted(case, moved=case["moved"] + np.array([0.5, -1.0, 2.0]))
    assert again == pytest.approx(energy, abs=1e-12)
    np.testing.assert_allclose(translated, forces, atol=1e-12)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)


def test_the_cutoff_is_smooth(case):
    """Second differences of the energy of a pair stay small where its edge ends, and nothing reaches further."""
    far = np.zeros((ATOMS, 3))
    far[:, 0] = 50.0 * np.arange(ATOMS)
    lengths = 3.0 + np.arange(-4, 5) * 1e-3
    energies = []
    for length in lengths:
        moved = far.copy()
        moved[1] = moved[0] + [0, length, 0]
        energies.append(boosted(case, reference=far, forces=np.zeros((ATOMS, 3)), moved=moved)[0])
    curvature = np.diff(energies, 2) / 1e-6
    assert np.abs(curvature).max() < 0.05
    np.testing.assert_allclose(energies[-4:], energies[-1], atol=1e-13)
    assert np.ptp(energies) > 0
