"""mlip (InstaDeep): MD steps of its JAX-MD engine with its JAX MACE. Langevin: the engine has no NVE."""

from __future__ import annotations

import queue
import threading
from typing import Any

import ase.io
import jax
import numpy as np
from mlip.data import DatasetInfo
from mlip.models import ForceField, Mace
from mlip.simulation.jax_md import JaxMDSimulationEngine
from mlip.typing.properties import Properties
from serve import serve

EPISODES = 1000
"""More than are ever asked for; the engine takes the number in advance."""


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    channels, *rest = case["hidden_irreps"].split("+")
    info = DatasetInfo(
        atomic_energies_map={int(z): 0.0 for z in case["elements"]},
        graph_cutoff_angstrom=5.0,
        avg_num_neighbors=case["edges"] / case["atoms"],
        avg_r_min_angstrom=1.0,
        scaling_mean=0.0,
        scaling_stdev=case["scale"],
    )
    config = Mace.Config(l_max=3, correlation=3, num_channels=int(channels.split("x")[0]), node_symmetry=len(rest))
    force_field = ForceField.from_mlip_network(Mace(config, info), Properties(energy=True, forces=True))
    atoms = ase.io.read(case["structure"])
    md = JaxMDSimulationEngine.Config(
        num_steps=EPISODES * case["steps"],
        num_episodes=EPISODES,
        snapshot_interval=case["steps"],
        timestep_fs=case["timestep_fs"],
        temperature_kelvin=300.0,
        box=np.diag(atoms.cell.array).tolist() if atoms.pbc.all() else None,
    )
    facts = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(force_field.params))}
    return Stepper(JaxMDSimulationEngine(atoms, force_field, md)), facts


class Stepper:
    """Lets the engine, which only knows whole runs, go on by one episode per call, in a thread that waits between."""

    def __init__(self, engine: Any) -> None:
        self._go: queue.Queue[None] = queue.Queue()
        self._done: queue.Queue[BaseException | None] = queue.Queue()
        engine.attach_logger(self._pause)
        threading.Thread(target=self._run, args=(engine,), daemon=True).start()

    def _pause(self, state: Any) -> None:
        self._done.put(None)
        self._go.get()

    def _run(self, engine: Any) -> None:
        self._go.get()
        try:
            engine.run()
        except BaseException as error:
            self._done.put(error)

    def __call__(self) -> None:
        self._go.put(None)
        error = self._done.get()
        if error is not None:
            raise error


if __name__ == "__main__":
    serve(build)
