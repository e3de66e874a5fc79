"""A structure in parts says what the whole says: every model, one part after another and on several devices."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from equijax.calculators import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.graph.batching import structure_graph
from equijax.graph.partition import split
from equijax.models.escn_config import DirectForces
from equijax.potential.committee import CommitteeModule
from equijax.structure import Structure
from tests.contracts.cases import CASES
from tests.potential.partitions import STRUCTURES, chain, crystal, deviations, potential_of, small_crystal
from tests.toy_model import stretched, toy_potential

TOLERANCE = 1e-12

# By default one model and one structure: the rest takes minutes to compile.
CASES_OF_PARTS = [
    pytest.param(name, label, marks=() if (name, label) == ("mace", "crystal") else pytest.mark.slow)
    for name in CASES
    for label in STRUCTURES
]


@pytest.mark.parametrize("name", CASES)
def test_parts_are_smaller_than_the_whole(name):
    config = CASES[name].config
    graph = structure_graph(Structure.from_ase(chain()), config.cutoff, (1, 6, 8))
    sizes = {piece.graph.num_nodes for piece in split(graph, 4, config.num_hops)}
    assert sizes == {5 + config.num_hops, 5 + 2 * config.num_hops}


def options(name: str) -> dict[str, dict]:
    """Changes of a config that change the number of hops, by what they are."""
    return {
        "mace": {"one layer": {"num_layers": 1}, "three layers": {"num_layers": 3}},
        "tensornet": {"no layer": {"num_layers": 0}, "one layer": {"num_layers": 1}},
        "tdn": {"three layers": {"num_layers": 3}, "direct": {"forces": "direct"}},
        "equiformer_v2": {"one layer": {"num_layers": 1}, "direct": {"forces": "direct"}},
        "escn": {
            "no edge-degree embedding": {"edge_degree_embedding": False},
            "direct": {"forces": DirectForces(), "isolated_atoms": "learned"},
        },
    }[name]


HOPS = [
    *(pytest.param(name, {}, id=name, marks=() if name == "mace" else pytest.mark.slow) for name in CASES),
    *(
        pytest.param(name, change, id=f"{name} with {label}", marks=pytest.mark.slow)
        for name in CASES
        for label, change in options(name).items()
    ),
]


@pytest.mark.parametrize(("name", "change"), HOPS)
def test_information_travels_as_many_hops_as_the_config_says(name, change):
    """No atom farther away matters, and the farthest does: features, energy and direct forces of the end of a chain."""
    case = CASES[name]
    config = type(case.config)(**{**dict(case.config), **change})
    potential = potential_of(name, config)
    hops = config.num_hops
    names = ("energies", "node_features", *(() if config.is_conservative else ("forces",)))

    def end_of(moved: int | None) -> np.ndarray:
        atoms = chain(12)
        if moved is not None:
            atoms.positions[moved] += [0.0, 0.15, 0.1]
        result = potential.predict(atoms, names)
        return np.concatenate([np.ravel(result[n][0]) for n in names])

    still = end_of(None)
    assert np.abs(end_of(hops) - still).max() > 1e-9 * np.abs(still).max()
    assert np.abs(end_of(hops + 1) - still).max() < 1e-14 * np.abs(still).max()


@pytest.mark.parametrize(("name", "label"), CASES_OF_PARTS)
def test_parts_and_devices_are_exact(name, label):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.potential.partitions", name, label]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    parts, devices = json.loads(done.stdout)
    assert len(parts) == (4 if label == "molecule" else 5)
    assert max(parts.values()) < TOLERANCE, parts
    assert max(devices.values()) < TOLERANCE, devices


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_a_simple_model(parts):
    potential = toy_potential(dtype="float64")
    for atoms in (stretched("CH3OH"), crystal(), small_crystal()):
        (found,) = deviations(potential, atoms, (parts, 1))
        assert max(found.values()) < TOLERANCE


def test_parts_share_one_compiled_shape():
    potential = toy_potential(dtype="float64")
    evaluator = potential.evaluator()
    potential.predict(crystal(), ("forces", "stress"), parts=6)
    assert evaluator.compile_count == 1


@pytest.mark.slow
@pytest.mark.slow
def test_energies_of_a_whole_structure_are_shared_by_its_atoms():
    config = type(CASES["escn"].config)(
        **{**dict(CASES["escn"].config), "structure_shift": 5.0, "isolated_atoms": "learned", "num_layers": 1}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = deviations(potential_of("escn", config), chain(9), (2, 1))
    assert max(found.values()) < TOLERANCE


@pytest.mark.slow
def test_a_committee_in_parts():
    import jax

    one = toy_potential(dtype="float64")
    params = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf]), dict(one.params))
    potential = dataclasses.replace(one, params=params, committee=2)
    assert isinstance(potential.module, CommitteeModule)
    (found,) = deviations(potential, crystal(), (3, 1))
    assert max(found.values()) < TOLERANCE
    with pytest.raises(EquijaxError, match="there is no energy_uncertainty in parts"):
        potential.predict(crystal(), ("energy", "energy_uncertainty"), parts=3)


def test_calculator_in_parts():
    potential = toy_potential(dtype="float64")
    whole, atoms = crystal(), crystal()
    whole.calc, atoms.calc = EquijaxCalculator(potential), EquijaxCalculator(potential, parts=3)
    for step in range(3):
        for one in (whole, atoms):
            one.rattle(0.05, seed=step)
            one.wrap()
        assert atoms.get_potential_energy() == pytest.approx(whole.get_potential_energy(), rel=1e-13)
        np.testing.assert_allclose(atoms.get_forces(), whole.get_forces(), atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(), whole.get_stress(), atol=1e-13)
    assert atoms.calc.compile_count == 1


def test_refusals():
    potential = toy_potential()
    with pytest.raises(EquijaxError, match="parts: there is no hessian in parts; expected energy, energies, forces"):
        potential.predict(chain(), ("hessian",), parts=2)
    with pytest.raises(EquijaxError, match="parts is 0 and devices is 1; expected 1 or more"):
        potential.predict(chain(), parts=0)
    with pytest.raises(EquijaxError, match="devices is 4 and parts is 8; expected parts 4, one for every device"):
        EquijaxCalculator(potential, parts=8, devices=4)
    with pytest.raises(EquijaxError, match=r"devices is 64; JAX has \d+ here .*host_platform_device_count=64"):
        potential.predict(chain(), parts=64, devices=64)
