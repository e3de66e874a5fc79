"""A model that predicts forces directly: taken as they are, and nothing that needs a gradient is offered."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError

from equijax.calculators import EquijaxCalculator
from equijax.checks import check_potential
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.md import run_md
from equijax.potential.potential import Potential
from equijax.structure import Structure
from equijax.train.evaluate import evaluate
from tests.toy_model import ToyConfig, ToyModel, stretched, toy_potential


class DirectModel(ToyModel):
    """The toy, with forces that no energy has."""

    def __call__(self, graph: Any, vectors: Any) -> Any:
        outputs = super().__call__(graph, vectors)
        weights = jnp.where(graph.neighbor_mask, jnp.exp(-jnp.sum(vectors**2, axis=-1)), 0)
        swirl = jnp.cross(vectors, jnp.asarray([0.0, 0.0, 1.0], vectors.dtype))
        return dataclasses.replace(outputs, node_forces=jnp.sum(weights[..., None] * (vectors + swirl), axis=1))


class DirectConfig(ToyConfig):
    is_conservative: ClassVar[bool] = False

    def build(self, statistics: Any) -> DirectModel:
        return DirectModel(cutoff=self.cutoff, channels=self.channels, statistics=statistics)


@pytest.fixture(scope="module")
def potential() -> Potential:
    toy = toy_potential()
    return dataclasses.replace(toy, model_config=DirectConfig(cutoff=4.0))


def test_forces_are_those_of_the_model(potential):
    atoms = stretched("CH3OH")
    result = potential.predict(atoms, ("energy", "forces"), dtype="float64")
    difference = atoms.positions[:, None] - atoms.positions[None]
    weights = np.exp(-(difference**2).sum(-1)) * (np.linalg.norm(difference, axis=-1) < 4.0)
    expected = (weights[..., None] * (difference + np.cross(difference, [0.0, 0.0, 1.0]))).sum(axis=1)
    assert np.abs(result["forces"] - expected).max() < 1e-12
    assert result["energy"] == toy_potential().predict(atoms, ("energy",), dtype="float64")["energy"]


@pytest.mark.parametrize("name", ["stress", "hessian"])
def test_derivatives_are_refused(potential, name):
    with pytest.raises(EquijaxError, match=f"there is no {name}: this toy predicts forces directly"):
        potential.predict(bulk("C"), (name,))


def test_calculator_has_no_stress(potential):
    atoms = bulk("C", cubic=True)
    atoms.calc = EquijaxCalculator(potential)
    assert atoms.get_forces().shape == (8, 3)
    with pytest.raises(PropertyNotImplementedError, match="predicts forces directly"):
        atoms.get_stress()


def test_dynamics_warns_or_refuses(potential, tmp_path):
    molecule = stretched("CH3OH")
    with pytest.warns(EquijaxWarning, match="the total energy will drift"):
        run_md(potential, molecule, steps=1, output=tmp_path / "nve.xyz", ensemble="nve")
    crystal = Atoms("C", positions=[[0, 0, 0]], cell=[3, 3, 3], pbc=True)
    with pytest.raises(EquijaxError, match="npt: this toy predicts forces directly"):
        run_md(potential, crystal, steps=1, output=tmp_path / "npt.xyz", ensemble="npt")


def test_stress_labels_are_left_out_with_a_warning(potential):
    structure = dataclasses.replace(
        Structure.from_ase(bulk("C")), labels={"energy": np.float64(0.0), "stress": np.zeros((3, 3))}
    )
    with pytest.warns(EquijaxWarning, match="stress labels are not compared"):
        metrics = evaluate(potential, [structure]).metrics
    assert set(metrics) == {"n_structures", "energy"}


def test_check_shows_what_is_not_conserved(potential):
    rows = {row.name: row for row in check_potential(potential, steps=5).rows}
    gradient = rows["forces are minus the gradient of the energy"]
    assert gradient.value > 1e-3
    for name in (gradient.name, "net force is zero", "curl of the direct forces"):
        assert rows[name].verdict == "info"
    assert "stress is the derivative of the energy by a strain" not in rows
    assert rows["equivariance under permutation of atoms"].verdict == "pass"
