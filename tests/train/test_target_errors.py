"""Loss and errors of tensor targets against numbers worked out by hand, by irrep and by component."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from equijax.models.targets import TargetConfig, TargetStatistics
from equijax.structure import Structure
from equijax.train.config import TargetTerm
from equijax.train.loss import Labels
from equijax.train.target_loss import cartesian_components, target_errors, target_sums
from equijax.train.target_metrics import target_metrics
from tests.contracts.structures import random_rotation
from tests.contracts.target_cases import STIFFNESS, irreps_matrix

ALPHA = TargetConfig(tensor="ij=ji")
STATISTICS = TargetStatistics((2.0, 0.5), ((0.0, 0.0),), (1.0,))


def sums_of(error, term, mask=None, weight=None, config=ALPHA, statistics=STATISTICS):
    """Of predictions with this error; labels that are masked hold NaN."""
    error = np.asarray(error, np.float32)
    mask = np.ones(error.shape[:-1], bool) if mask is None else np.asarray(mask)
    label = np.where(mask[..., None], np.float32(0.25), np.nan).astype(np.float32) * np.ones_like(error)
    weight = np.ones(error.shape[:-1], np.float32) if weight is None else np.asarray(weight, np.float32)
    predicted = np.float32(0.25) + error
    labels = Labels(value=label, mask=mask, weight=weight)
    found = target_sums("a", term, config, statistics, jnp.asarray(predicted), labels)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        # Errors: 0e of 1 with scale 2, so 1/4; 2e of norm 1 with scale 0.5, (1/5) / 0.25 = 4/5.
        (TargetTerm(kind="mse"), (1 / 4 + 4 / 5) / 2),
        (TargetTerm(kind="mae"), (1 / 2 + (4 / 5) ** 0.5) / 2),
        (TargetTerm(kind="huber", delta=0.6), (1 / 8 + 0.6 * ((4 / 5) ** 0.5 - 0.3)) / 2),
        (TargetTerm(per_irrep={"2e": 3.0}), (1 / 4 + 3 * 4 / 5) / 4),
        (TargetTerm(per_irrep={"2e": 0.0}), 1 / 4),
    ],
)
def test_loss_by_irrep(term, expected):
    error = [[1.0, 0.6, 0.0, 0.8, 0.0, 0.0]]
    assert sums_of(error, term)["a_loss"] == pytest.approx(expected, rel=1e-5)
    turn = irreps_matrix(ALPHA.components, random_rotation(3))
    assert sums_of(np.array(error) @ turn.T, term)["a_loss"] == pytest.approx(expected, rel=1e-5)


def test_frames_without_label_and_weights():
    error = np.arange(18.0).reshape(3, 6)
    both = sums_of(error, TargetTerm(), mask=[True, False, True], weight=[1.0, 7.0, 2.0])
    one, other = sums_of(error[:1], TargetTerm()), sums_of(error[2:], TargetTerm())
    assert both["a_loss"] == pytest.approx(one["a_loss"] + 2 * other["a_loss"], rel=1e-5)
    assert both["a_count"] == 2
    assert both["a_2e_square"] == pytest.approx((error[[0, 2], 1:] ** 2).sum(), rel=1e-5)


def test_errors_by_irrep_and_component():
    matrix = np.array([[1.0, -2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    found = target_errors({"a": ALPHA}, sums_of([ALPHA.cartesian.to_irreps(matrix)], TargetTerm()))
    expected = {
        "a_rmse": (18 / 9) ** 0.5,
        "a_mae": 8 / 9,
        "a_0e_rmse": 4 / 3**0.5,
        "a_0e_mae": 4 / 3**0.5,
        "a_2e_rmse": ((18 - 16 / 3) / 5) ** 0.5,
        "a_xx_rmse": 1.0,
        "a_xy_rmse": 2.0,
        "a_xz_rmse": 0.0,
        "a_yy_rmse": 0.0,
        "a_yz_rmse": 0.0,
        "a_zz_rmse": 3.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert target_errors({"a": ALPHA}, {"a_count": 0.0}) == {}


def test_components_name_each_independent_element_once():
    assert list(cartesian_components(TargetConfig(tensor="i"))) == ["x", "y", "z"]
    assert list(cartesian_components(ALPHA)) == ["xx", "xy", "xz", "yy", "yz", "zz"]
    assert list(cartesian_components(TargetConfig(tensor="ij=-ji"))) == ["xy", "xz", "yz"]
    assert len(cartesian_components(TargetConfig(tensor=STIFFNESS))) == 21
    assert cartesian_components(TargetConfig(irreps="0o+2o")) == {}


def molecule(**labels):
    return Structure(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 1.0]]), labels=labels)


def test_test_set_errors_agree_with_those_of_the_loss():
    rng = np.random.default_rng(0)
    labels, errors = rng.normal(size=(2, 4, 6))
    structures = [molecule(a=label) for label in labels] + [molecule()]
    predictions = [{"a": ALPHA.cartesian.to_cartesian(value)} for value in labels + errors] + [{"a": np.zeros((3, 3))}]
    found = target_metrics("a", ALPHA, structures, predictions)
    logged = target_errors({"a": ALPHA}, sums_of(errors, TargetTerm()))
    assert found["rmse"] == pytest.approx(logged["a_rmse"], rel=1e-5)
    assert found["mae"] == pytest.approx(logged["a_mae"], rel=1e-5)
    for irrep in ("0e", "2e"):
        assert found["by_irrep"][irrep]["mae"] == pytest.approx(logged[f"a_{irrep}_mae"], rel=1e-5)
    for component in ("xx", "xy", "zz"):
        assert found["by_component"][component]["rmse"] == pytest.approx(logged[f"a_{component}_rmse"], rel=1e-5)
    assert found["relative"] == pytest.approx(np.linalg.norm(errors) / np.linalg.norm(labels))
    assert target_metrics("a", ALPHA, [molecule()], predictions[:1]) == {}


def test_shares_of_tensors_that_are_not_positive_definite():
    matrices = [np.diag(d) for d in ([1.0, 2, 3], [1.0, 2, -0.1], [1.0, 1, 1], [-1.0, -1, 1])]
    structures = [molecule(a=ALPHA.cartesian.to_irreps(np.eye(3))) for _ in matrices]
    found = target_metrics("a", ALPHA, structures, [{"a": matrix} for matrix in matrices])
    assert found["not_positive_definite"] == {"labels": 0.0, "predictions": 0.5}


def test_directional_errors_of_a_stiffness():
    config = TargetConfig(tensor=STIFFNESS, reduce="mean")
    d = np.eye(3)
    # C_nnnn of δ_ij δ_kl is one in every direction.
    ones = np.einsum("ij,kl->ijkl", d, d)
    shear = np.einsum("ik,jl->ijkl", d, d) + np.einsum("il,jk->ijkl", d, d)
    structure = molecule(c=config.cartesian.to_irreps(ones + 0.5 * shear))
    found = target_metrics("c", config, [structure], [{"c": 1.25 * ones + 0.5 * shear}])
    assert found["directional"] == pytest.approx({"rmse": 0.25, "mae": 0.25, "mae_relative": 0.125})
    assert found["not_positive_definite"] == {"labels": 0.0, "predictions": 0.0}
    soft = target_metrics("c", config, [structure], [{"c": ones}])
    assert soft["not_positive_definite"]["predictions"] == 1.0
