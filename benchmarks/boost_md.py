"""BoostMD against plain dynamics of its base model: what is sampled, and what a step costs.

Langevin dynamics of both from the same start, replicas with velocities and noise of their own; a replica is a block for
the error of a mean. Energies are those of the base model: frames are taken at steps at which it is evaluated. The speed
is CPU time per step of one replica, both programs in turns, without files.

    python benchmarks/boost_md.py BASE SURROGATE STRUCTURE --output FOLDER [--interval 10] [--steps 20000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.neighborlist import build_neighbor_list, natural_cutoffs

from equijax.md import MDSettings, Simulation
from equijax.md.boost import Boost
from equijax.weights import load_potential
from equijax.weights.boost_file import load_surrogate

EVERY = 50
"""Steps between two frames, before it is made a multiple of the interval."""
BINS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("surrogate", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=300.0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    base, surrogate = load_potential(arguments.base), load_surrogate(arguments.surrogate)
    atoms = ase.io.read(arguments.structure, 0)
    boosts = {"base": None, "boosted": Boost(surrogate, arguments.interval)}
    result = compare(base, boosts, atoms, arguments)
    (arguments.output / "boost_md.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({name: value for name, value in result.items() if name != "histograms"}, indent=1))
    draw(result, arguments.output / "boost_md.png")


def compare(base: Any, boosts: dict[str, Boost | None], atoms: Any, arguments: Any) -> dict[str, Any]:
    every = arguments.interval * round(EVERY / arguments.interval)
    samples = {
        name: sampled(base, boost, atoms, arguments, every, seed)
        for seed, (name, boost) in zip((100, 500), boosts.items(), strict=True)
    }
    means, histograms = {}, {}
    for name in samples["base"]:
        both = [samples[kind][name] for kind in boosts]
        (first, error_1), (second, error_2) = (mean_and_error(values) for values in both)
        spread = float(np.hypot(error_1, error_2))
        means[name] = {
            "base": first,
            "boosted": second,
            "error": spread,
            "difference_in_errors": (second - first) / spread,
        }
        low, high = min(v.min() for v in both), max(v.max() for v in both)
        edges = np.linspace(low, high, BINS + 1)
        densities = [np.histogram(values, edges, density=True)[0] for values in both]
        histograms[name] = {"edges": edges.tolist(), **{k: d.tolist() for k, d in zip(boosts, densities, strict=True)}}
        # Half the area between the two curves, and what it is between two halves of the plain run.
        width = edges[1] - edges[0]
        halves = [np.histogram(part, edges, density=True)[0] for part in np.array_split(both[0], 2)]
        means[name]["area_between"] = float(width * np.abs(densities[0] - densities[1]).sum() / 2)
        means[name]["area_between_halves_of_base"] = float(width * np.abs(halves[0] - halves[1]).sum() / 2)
    return {
        "interval": arguments.interval,
        "steps": arguments.steps,
        "replicas": arguments.replicas,
        "temperature": arguments.temperature,
        "speed": speeds(base, boosts, atoms, arguments),
        "means": means,
        "histograms": histograms,
    }


def sampled(base: Any, boost: Boost | None, atoms: Any, arguments: Any, every: int, seed: int) -> dict[str, np.ndarray]:
    """Observables [replicas, values] of the second four fifths of the run."""
    settings = MDSettings(ensemble="langevin", temperature=arguments.temperature, timestep_fs=0.5, seed=seed)
    simulation = Simulation(base, atoms, settings, replicas=arguments.replicas, boost=boost)
    moments = simulation.run_to(list(range(0, arguments.steps + 1, every)))
    kept = [m for m in moments if m.step >= arguments.steps / 5]
    positions = np.array([m.state.positions for m in kept])  # [frames, B, N, 3]
    found = {
        "potential energy (eV)": np.array([m.state.energy for m in kept]).T,
        "temperature (K)": np.array([m.observed.temperature for m in kept]).T,
    }
    first, second = np.triu_indices(len(atoms), 1)
    distances = np.linalg.norm(positions[:, :, first] - positions[:, :, second], axis=-1)
    bonded = build_neighbor_list(atoms, natural_cutoffs(atoms), self_interaction=False).get_connectivity_matrix()
    bonded = np.asarray((bonded + bonded.T).todense()) > 0
    found["all distances (Å)"] = by_replica(distances)
    kinds: dict[str, list[int]] = {}
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        if bonded[i, j]:
            kinds.setdefault("-".join(sorted((atoms.symbols[i], atoms.symbols[j]))), []).append(pair)
    for kind, pairs in kinds.items():
        found[f"bond {kind} (Å)"] = by_replica(distances[:, :, pairs])
    for i, j, k, l in dihedrals(atoms, bonded)[:1]:
        name = f"dihedral {'-'.join(atoms.symbols[n] for n in (i, j, k, l))} (degrees, absolute)"
        angle = dihedral(*(positions[:, :, n] for n in (i, j, k, l)))
        found[name] = by_replica(np.abs(angle)[..., None])
    return found


def dihedrals(atoms: Any, bonded: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Bonded chains that start at the hydrogen of a hydroxyl group and run over heavy atoms."""
    heavy = atoms.numbers > 1
    return [
        (h, o, c, d)
        for o in np.flatnonzero(atoms.numbers == 8)
        for h in np.flatnonzero(bonded[o] & ~heavy)
        for c in np.flatnonzero(bonded[o] & heavy)
        for d in np.flatnonzero(bonded[c] & heavy)
        if d != o
    ]


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Degrees from -180 to 180 of points [..., 3]."""
    first, middle, last = b - a, c - b, d - c
    normal, other = np.cross(first, middle), np.cross(middle, last)
    along = np.sum(np.cross(normal, other) * middle, axis=-1) / np.linalg.norm(middle, axis=-1)
    return np.degrees(np.arctan2(along, np.sum(normal * other, axis=-1)))


def by_replica(values: np.ndarray) -> np.ndarray:
    """[frames, B, n] -> [B, frames n]"""
    return np.swapaxes(values, 0, 1).reshape(values.shape[1], -1)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Over all, and its standard error with each replica as one block."""
    blocks = values.mean(axis=1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(len(blocks)))


def speeds(base: Any, boosts: dict[str, Boost | None], atoms: Any, arguments: Any) -> dict[str, float]:
    """Microseconds of CPU time per step of one replica, the median of turns, and their ratio."""
    settings = MDSettings(ensemble="langevin", temperature=arguments.temperature, timestep_fs=0.5, seed=1)
    simulations = {name: Simulation(base, atoms, settings, boost=boost) for name, boost in boosts.items()}
    steps = 40 * arguments.interval
    turns: dict[str, list[float]] = {name: [] for name in boosts}
    for simulation in simulations.values():
        simulation.run_to([0, arguments.interval])
    for _ in range(7):
        for name, simulation in simulations.items():
            began = time.process_time()
            simulation.run_to([simulation.step + steps])
            turns[name].append(1e6 * (time.process_time() - began) / steps)
    found = {f"{name}_us_per_step": statistics.median(values) for name, values in turns.items()}
    return found | {"speed_up": found["base_us_per_step"] / found["boosted_us_per_step"]}


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in result["histograms"] if not name.startswith("temperature")]
    columns = 4
    figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(12, 2.6 * -(-len(names) // columns)))
    for axis, name in zip(axes.flat, names, strict=False):
        data = result["histograms"][name]
        middle = (np.array(data["edges"][1:]) + np.array(data["edges"][:-1])) / 2
        axis.plot(middle, data["base"], color="#4477aa", lw=2, label="base model")
        axis.plot(middle, data["boosted"], color="#cc3311", lw=1.2, ls="--", label=f"boosted, N = {result['interval']}")
        axis.set_xlabel(name)
        axis.set_yticks([])
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
