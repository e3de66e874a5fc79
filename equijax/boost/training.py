"""The fit of a surrogate to windows of dynamics, in a run directory, resumable."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase import Atoms

from equijax.boost.config import BoostExperiment
from equijax.boost.windows import FrameEdges, Windows, frame_edges, generate, statistics_of
from equijax.errors import EquijaxError, located
from equijax.models.boost import Boost, Edges
from equijax.potential.boost import Surrogate, anchored, check_is_base, context_of, near_anchor, surrogate_energies
from equijax.potential.potential import Potential
from equijax.precision import jit, precision
from equijax.train.checkpoint import CheckpointStore
from equijax.train.interruption import EXIT_CODES, StopSignals, TrainingInterrupted
from equijax.train.metrics_log import MetricsLog
from equijax.train.run_directory import RunDirectory, refuse_changes
from equijax.weights.boost_file import base_digest, save_surrogate
from equijax.weights.model_file import load_potential

Params = Any
Batch = dict[str, Any]


def train_surrogate(
    experiment: BoostExperiment, output: str | Path, resume: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Run the base model, keep its windows in `windows.npz`, fit the surrogate; returns the model file.

    With `resume` the run goes on from its newest checkpoint with the same numbers as if it had not stopped. Raises
    EquijaxError for a directory with another run and for base models without surrogates; TrainingInterrupted after
    saving on SIGINT, SIGTERM and SIGUSR1.
    """
    directory = RunDirectory(output)
    if directory.holds_a_run() and not resume:
        raise located("already holds a run", file=directory.path, fix="add --resume, or choose another --output")
    potential = load_potential(experiment.base)
    check_is_base(potential, experiment.model)
    atoms = ase.io.read(experiment.windows.structure, -1)
    assert isinstance(atoms, Atoms)
    with directory.locked():
        config = experiment.model_dump(mode="json") | {"base_digest": base_digest(potential)}
        store = CheckpointStore(directory.checkpoints)
        store.remove_unfinished()
        progress = store.newest_progress() if resume else None
        if progress is not None:
            refuse_changes(progress["config"], config, directory.path)
        directory.write_config(config)
        windows_file = directory.path / "windows.npz"
        if progress is None:
            say(f"dynamics of the base model: {experiment.windows.windows} windows of {experiment.windows.replicas}")
            generate(potential, atoms, experiment.windows, experiment.interval, experiment.seed).save(windows_file)
        fit = Fit(experiment, potential, atoms, Windows.load(windows_file))
        return fit.run(directory, store, config, say)


class Fit:
    """One fit: data on the device, compiled epochs."""

    def __init__(self, experiment: BoostExperiment, potential: Potential, atoms: Atoms, windows: Windows) -> None:
        self.experiment, self.potential = experiment, potential
        table = {z: index for index, z in enumerate(potential.elements)}
        self.species = np.array([table[int(z)] for z in windows.numbers], np.int32)
        self.irreps = str(potential.model_config.feature_irreps)
        self.module = Boost(experiment.model, self.irreps, len(potential.elements))
        count = len(windows.positions)
        self.valid = max(1, round(experiment.training.valid_fraction * count))
        self.train = count - self.valid
        size = experiment.training.batch_windows
        if self.train < size:
            raise EquijaxError(f"there are {self.train} windows to train on; training.batch_windows is {size}")
        self.statistics = statistics_of(
            windows.features[: self.train], self.species, self.irreps, len(potential.elements)
        )
        edges = frame_edges(windows, atoms, experiment.model.cutoff, potential.elements)
        self.windows = windows
        self.data = _data(windows, edges)
        steps = experiment.training.epochs * (self.train // size)
        rate = experiment.training
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(rate.clip_grad_norm),
            optax.adam(optax.cosine_decay_schedule(rate.learning_rate, steps, rate.final_fraction)),
        )

    def predicted(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """E - E_ref [b, M] in eV and forces [b, M, N, 3] in eV/Å of every frame of b windows, the reference first."""
        windows, frames, number = batch["positions"].shape[:3]
        species = jnp.tile(jnp.asarray(self.species), windows)
        features = batch["features"].reshape(windows * number, -1)
        context = context_of(self.module, params, features, species, self.statistics)

        def of_every_frame(array: jax.Array) -> jax.Array:
            per_window = array.reshape(windows, 1, number, *array.shape[1:])
            return jnp.repeat(per_window, frames, axis=1).reshape(windows * frames * number, *array.shape[1:])

        width = batch["neighbors"].shape[-1]
        frame = jnp.arange(windows * frames, dtype=jnp.int32).reshape(windows, frames, 1, 1)
        edges = Edges(
            neighbors=(batch["neighbors"] + frame * number).reshape(-1, width),
            neighbor_mask=batch["mask"].reshape(-1, width),
            reverse=(batch["reverse"] + frame * number * width).reshape(-1, width),
        )
        contexts = jax.tree.map(of_every_frame, context)
        vectors = batch["vectors"].reshape(-1, width, 3)
        energies, own = surrogate_energies(self.module, params, contexts, edges, vectors)
        energies, own = energies.reshape(windows, frames, number), own.reshape(windows, frames, number, 3)
        positions = batch["positions"]
        anchor = anchored(
            context, energies[:, 0], own[:, 0], positions[:, 0], jnp.zeros(windows), batch["forces"][:, 0]
        )
        return jax.vmap(functools.partial(near_anchor, anchor), in_axes=1, out_axes=1)(energies, own, positions)

    def errors(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of energies [b, M - 1] and forces [b, M - 1, N, 3], beside the reference, where there are none."""
        energies, forces = self.predicted(params, batch)
        return (energies - batch["energies"])[:, 1:], (forces - batch["forces"])[:, 1:]

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        fit, (energies, forces) = self.experiment.training, self.errors(params, batch)
        per_atom = jnp.mean(energies**2) / len(self.species)
        return fit.energy_weight * per_atom + fit.forces_weight * jnp.mean(forces**2)

    def first_params(self) -> Params:
        batch = jax.tree.map(lambda array: jnp.asarray(array[:1]), self.data)
        edges = Edges(batch["neighbors"][0, 0], batch["mask"][0, 0], batch["reverse"][0, 0])
        arguments = (batch["features"][0], self.species, self.statistics, edges, batch["vectors"][0, 0])
        initial = jit(lambda key: self.module.init(key, *arguments, method="initial")["params"])
        return initial(jax.random.key(self.experiment.seed))

    def run(
        self, directory: RunDirectory, store: CheckpointStore, config: dict[str, Any], say: Callable[[str], None]
    ) -> Path:
        fit, size = self.experiment.training, self.experiment.training.batch_windows
        with precision("float32"):
            params = self.first_params()
            state = {"params": params, "optimizer": self.optimizer.init(params)}
            found = store.restore(state)
            start, state, records = (0, state, 0) if found is None else (found[0], found[1], found[2]["records"])
            data = jax.device_put(self.data)
            epoch_of, valid_of = jit(self._epoch), jit(self.errors)
            log, began = MetricsLog(directory.metrics, records), time.monotonic()
            with StopSignals() as signals:
                for epoch in range(start, fit.epochs):
                    rng = np.random.Generator(np.random.Philox([self.experiment.seed, epoch]))
                    order = rng.permutation(self.train)[: self.train // size * size].reshape(-1, size)
                    state, loss = epoch_of(state, data, order)
                    if not np.isfinite(loss):
                        raise EquijaxError(f"epoch {epoch + 1}: the loss is {loss}; fix: lower training.learning_rate")
                    done = epoch + 1
                    stopped = signals.received is not None
                    if done % fit.checkpoint_every_epochs == 0 or done == fit.epochs or stopped:
                        batch = {name: array[self.train :] for name, array in data.items()}
                        errors = self.measured(*valid_of(state["params"], batch))
                        log.write({"kind": "valid", "epoch": done, "step": done * len(order), "loss": loss, **errors})
                        log.sync()
                        store.save(done, state, {"config": config, "records": log.records})
                        say(
                            f"epoch {done}: forces {1e3 * errors['forces_rmse']:.1f} meV/Å, change of the energy "
                            f"{1e3 * errors['energy_rmse']:.2f} meV ({time.monotonic() - began:.0f} s)"
                        )
                    if stopped:
                        assert signals.received is not None
                        raise TrainingInterrupted(EXIT_CODES[signals.received])
            batch = {name: array[self.train :] for name, array in data.items()}
            errors = self.measured(*valid_of(state["params"], batch))
            log.close()
        return save_surrogate(self.surrogate(state["params"], errors), directory.model)

    def _epoch(self, state: Any, data: Batch, order: jax.Array) -> tuple[Any, jax.Array]:
        def step(state: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            batch = {name: array[chosen] for name, array in data.items()}
            loss, gradient = jax.value_and_grad(self.loss)(state["params"], batch)
            updates, optimizer = self.optimizer.update(gradient, state["optimizer"])
            return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss

        state, losses = jax.lax.scan(step, state, order)
        return state, jnp.mean(losses)

    def measured(self, energies: Any, forces: Any) -> dict[str, float]:
        """Root mean square errors on the validation windows: eV, eV/Å, and of the forces by the number of steps since
        the reference. `still_forces_rmse` is that of forces which stay those of the reference."""
        energies, forces = np.asarray(energies, np.float64), np.asarray(forces, np.float64)
        offsets = self.windows.offsets[self.train :, 1:]
        reference = self.windows.forces[self.train :]
        found = {
            "energy_rmse": _rms(energies),
            "forces_rmse": _rms(forces),
            "still_forces_rmse": _rms(reference[:, 1:] - reference[:, :1]),
        }
        for offset in np.unique(offsets):
            found[f"forces_rmse_after_{offset}"] = _rms(forces[offsets == offset])
        return found

    def surrogate(self, params: Params, errors: dict[str, float]) -> Surrogate:
        experiment = self.experiment
        return Surrogate(
            config=experiment.model,
            elements=self.potential.elements,
            feature_irreps=self.irreps,
            statistics=self.statistics,
            params=jax.tree.map(np.asarray, params),
            base=base_digest(self.potential),
            interval=experiment.interval,
            timestep_fs=experiment.windows.timestep_fs,
            metadata={
                "formula": Atoms(numbers=self.windows.numbers).get_chemical_formula(),
                "temperature": experiment.windows.temperature,
                "training_windows": self.train,
                "valid": errors,
                "seed": experiment.seed,
            },
        )


def _data(windows: Windows, edges: FrameEdges) -> Batch:
    """float32 arrays with a leading axis of windows; positions and energies relative to the reference."""
    return {
        "positions": (windows.positions - windows.positions[:, :1]).astype(np.float32),
        "energies": (windows.energies - windows.energies[:, :1]).astype(np.float32),
        "forces": windows.forces.astype(np.float32),
        "features": windows.features,
        **{field.name: getattr(edges, field.name) for field in dataclasses.fields(edges)},
    }


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))
