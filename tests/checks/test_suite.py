"""A sound model passes; each broken one is caught by the row that is made for its fault."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from equijax.checks import check_potential, write_page
from equijax.checks.derivatives import check_derivatives
from equijax.checks.dynamics import check_dynamics
from equijax.checks.evaluation import SharedShape
from equijax.checks.structures import choose_cases, made_structure
from equijax.errors import EquijaxError
from equijax.structure import Structure
from tests.toy_model import toy_potential

from .broken import WrongForcesConfig, broken, sound

# fault: (what must say so, verdict)
CAUGHT = {
    "origin": ("equivariance under translation", "fail"),
    "direction": ("equivariance under rotation", "fail"),
    "handed": ("equivariance under inversion", "fail"),
    "size": ("two distant copies: twice the energy", "fail"),
    "jump": ("energy jumps at the cutoff", "fail"),
    "kink": ("derivative of the force jumps at the cutoff", "warn"),
    "hole": ("attraction of two atoms at short distance", "warn"),
    "wells": ("second well of two atoms, depth", "warn"),
    "company": ("alone as in a batch", "fail"),
    "alone": ("an isolated atom has its reference energy", "fail"),
    "rounding": ("energy in float32", "warn"),
    "nan": ("forces are minus the gradient of the energy", "fail"),
}


@pytest.fixture(scope="module")
def healthy():
    return sound()


def verdicts(potential):
    result = check_potential(potential, steps=5)
    json.dumps(result.to_json(), allow_nan=False)
    return {row.name: row.verdict for row in result.rows}


def test_a_sound_model_passes_and_its_page_is_complete(healthy, tmp_path):
    result = check_potential(healthy)
    assert [row for row in result.rows if row.verdict not in ("pass", "info")] == []
    assert result.verdict == "pass"
    assert "C3H8O" in result.source
    reach = next(row for row in result.rows if row.name == "measured reach")
    assert reach.value == 1
    gain = next(row for row in result.rows if row.name == "NVE residual with half the time step")
    assert 0.2 < gain.value < 0.3
    text = write_page(tmp_path / "check.html", "toy", repr(healthy), result).read_text()
    assert text.count("data:image/png;base64") == 2
    assert "<script" not in text
    assert "http" not in text.split("<body>")[1]
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["verdict"] == "pass"
    assert set(stored["dimers"]) == {"H-H", "H-C", "C-C", "H-O", "C-O", "O-O"}


@pytest.mark.parametrize("fault", sorted(CAUGHT))
def test_a_fault_is_caught(healthy, fault):
    found = verdicts(broken(healthy, fault))
    name, verdict = CAUGHT[fault]
    assert found[name] == verdict
    healthy_rows = {"net torque on a molecule is zero", "equivariance under permutation of atoms"}
    if fault in ("kink", "hole", "wells", "rounding"):  # nothing else is wrong with them
        assert "fail" not in found.values()
        assert {found[row] for row in healthy_rows} == {"pass"}
    if fault == "size":
        assert found["no influence from beyond the reach"] == "fail"
    if fault == "nan":
        assert found["attraction of two atoms at short distance"] == "fail"


def test_forces_that_are_not_a_gradient_lose_the_energy():
    healthy = toy_potential()
    potential = dataclasses.replace(healthy, model_config=WrongForcesConfig(), params={"toy": healthy.params})
    molecule = made_structure(potential.elements, 0)
    rows, (coarse, _) = check_dynamics(SharedShape(potential, "float32", [molecule]), molecule, True, True, 0)
    assert rows[0].verdict == "fail"
    assert rows[0].value > 1
    assert not coarse.exploded
    evaluate = SharedShape(potential, "float64", [molecule])
    gradient, net, *_ = check_derivatives(evaluate, [molecule], evaluate([molecule]), True)
    assert gradient.verdict == "fail"
    assert net.verdict == "pass"


def test_a_run_that_falls_into_a_hole(healthy):
    potential = broken(healthy, "hole")
    evaluate = SharedShape(potential, "float32", [made_structure(potential.elements, 0)], 24)
    close = Structure(np.array([6, 6, 8]), np.array([[0.0, 0, 0], [0.8, 0, 0], [0, 3.0, 0]]))
    rows, (coarse, fine) = check_dynamics(evaluate, close, True, True, 0, 60)
    assert coarse.exploded
    assert [row.verdict for row in rows] == ["fail"]
    assert rows[0].to_json()["value"] is None
    assert np.isfinite(coarse.total).all()
    assert len(fine.time) == len(coarse.time)


def test_frames_are_named_and_elements_known(healthy):
    crystal = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [1.9, 1.7, 1.4]]), 3.6 * np.eye(3), (True,) * 3)
    atom = Structure(np.array([1]), np.zeros((1, 3)))
    cases = choose_cases((1, 6, 8), 4.0, [atom, crystal, atom], "some.xyz", 0)
    assert cases.source == "1 of 3 frames of some.xyz (frame 1)"
    with pytest.raises(EquijaxError, match="no frame has two or more atoms"):
        check_potential(healthy, [atom], "some.xyz")
    unknown = Structure(np.array([6, 26]), np.array([[0.0, 0, 0], [2, 0, 0]]), file="iron.xyz", frame=4)
    with pytest.raises(EquijaxError, match=r"iron\.xyz frame 4: atom 1 is Fe"):
        check_potential(healthy, [unknown], "iron.xyz")
