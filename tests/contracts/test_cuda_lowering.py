"""Programs for NVIDIA GPUs can be made without one: every model lowers, and stays on the device while it runs."""

from __future__ import annotations

from functools import partial

import ase
import jax
import numpy as np
import pytest

from equijax.graph.atom_graph import edge_vectors
from equijax.md import MDSettings, Simulation
from equijax.models import MODELS
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import precision

from .structures import methanol
from .subject import subject

# One for the default run, beside the tests that trace the same program; tracing takes seconds each.
ROWS = [
    pytest.param(name, marks=(pytest.mark.xdist_group(f"contracts-{name}-float32"), *slow))
    for name in MODELS
    for slow in [() if name == "mace" else (pytest.mark.slow,)]
]


def lowered(compiled, *arguments):
    text = compiled.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.custom_call" not in text  # no callback to the host, and no library that a GPU might lack
    return text


@pytest.mark.parametrize("name", ROWS)
def test_energies_and_forces(name):
    model = subject(name, "float32")
    graph = model.pack([methanol()])
    with precision("float32"):
        vectors = np.asarray(jax.jit(edge_vectors)(graph))
        text = lowered(model._derivatives, model.params, graph, vectors)
    assert "f64" not in text
    if name == "mace":
        # Sums over the atoms of a graph, for energies and stresses: forces come without atomic additions, whose order,
        # and so whose last bits, changes from call to call.
        assert text.count('"stablehlo.scatter"') == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_gradient(name):
    model = subject(name, "float32")
    graph = model.pack([methanol()])
    with precision("float32"):
        target = jax.eval_shape(partial(energy_and_derivatives, model.module), model.params, graph)
        text = lowered(jax.jit(jax.value_and_grad(model.loss)), model.params, graph, target)
    assert "f64" not in text


@pytest.mark.slow
@pytest.mark.parametrize("pbc", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_molecular_dynamics(name, pbc):
    """The compiled loop with its neighbour search: nothing but the log leaves the device."""
    potential = subject(name, "float32").potential
    structure = methanol()
    atoms = ase.Atoms(structure.atomic_numbers, structure.positions, cell=8 * np.eye(3), pbc=pbc)
    simulation = Simulation(potential, atoms, MDSettings(ensemble="langevin"))
    engine, maker = simulation.engine, simulation.engine.list_maker(simulation.room)
    stops = np.arange(8, dtype=np.int64)
    with precision("float64"):
        text = lowered(engine._program(simulation.room), engine._params, simulation.state, maker.empty(), stops)
    assert "stablehlo.while" in text
