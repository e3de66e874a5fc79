"""The i-PI driver against ASE's server, over a unix socket."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator

from equijax.calculators import EquijaxCalculator
from equijax.deploy.ipi import serve_forces
from equijax.errors import EquijaxError
from tests.toy_model import stretched, toy_potential


@pytest.mark.parametrize("periodic", [False, True])
def test_server_gets_the_numbers_of_the_calculator(periodic):
    potential = toy_potential(dtype="float64")
    atoms = bulk("C", "diamond", a=3.9, cubic=True) if periodic else stretched("CH3OH")
    name = f"equijax_test_{os.getpid()}_{periodic}"
    done: list[int] = []
    with SocketIOCalculator(unixsocket=name) as server:
        client = threading.Thread(target=lambda: done.append(serve_forces(potential, atoms, unix=name)), daemon=True)
        client.start()
        for seed in (1, 2):
            moved = atoms.copy()
            moved.rattle(0.05, seed=seed)
            if periodic:
                moved.set_cell(moved.cell.array @ np.diag([1.01, 1.0, 0.98]), scale_atoms=True)
            moved.calc = server
            direct = moved.copy()
            direct.calc = EquijaxCalculator(potential)
            assert moved.get_potential_energy() == pytest.approx(direct.get_potential_energy(), abs=1e-9)
            np.testing.assert_allclose(moved.get_forces(), direct.get_forces(), atol=1e-9)
            if periodic:
                np.testing.assert_allclose(moved.get_stress(), direct.get_stress(), atol=1e-9)
    client.join(timeout=60)
    assert done == [2]


def test_nobody_listens():
    with pytest.raises(EquijaxError, match=r"/tmp/ipi_nobody_here: --unix: cannot connect.*start the server first"):
        serve_forces(toy_potential(), stretched("H2O"), unix="nobody_here")


def test_another_number_of_atoms():
    potential, name = toy_potential(), f"equijax_test_{os.getpid()}_count"
    errors: list[BaseException] = []

    def client() -> None:
        try:
            serve_forces(potential, stretched("H2O"), unix=name)
        except EquijaxError as error:
            errors.append(error)

    with SocketIOCalculator(unixsocket=name) as server:
        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        atoms = stretched("CH4")
        atoms.calc = server
        with pytest.raises(OSError):
            atoms.get_potential_energy()
    thread.join(timeout=60)
    assert "expected the 3 atoms of the structure" in str(errors[0])
