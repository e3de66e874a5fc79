"""A large dataset in shards: how fast it is written and read, how fast it trains, and in how much memory.

    python benchmarks/streaming.py --frames 1000000 --folder FOLDER [--atoms 5] [--shards 10] [--train SECONDS]

Makes an HDF5 file of random molecules with harmonic labels and writes it as shards (with --write; otherwise those in
FOLDER are used), reads all frames of an epoch in its order, makes the batches of another, and trains a small MACE for
SECONDS, or until its --epochs are done. Every part runs in a process of its own, and again with a hundredth of the
frames (at least 1000): memory is the difference of the largest resident sets, so that the program and the model do not
count. With --json the figures go to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
EXPERIMENT = """
seed: 0
dataset: {{train: {shards}, valid: {{count: {valid}}}, atomic_energies: {{H: -1.0, C: -2.0, O: -3.0}}}}
model: {{name: mace, cutoff: 3.0, hidden_irreps: 4x0e, num_layers: 1, correlation: 1, lmax: 1, radial_mlp: [8]}}
training:
  max_epochs: {epochs}
  batch: {{max_structures: {batch}}}
  checkpoint_every_seconds: null
  log_every_steps: 50
"""


def make_source(path: Path, frames: int, atoms: int, seed: int = 0) -> None:
    """Molecules of H, C and O on a grid of 1.3 Å with noise; energy and forces of harmonic springs, in eV and Å."""
    import h5py

    rng = np.random.default_rng(seed)
    grid = 1.3 * np.array([[i, j, k] for i in range(5) for j in range(5) for k in range(5)], float)[:atoms]
    isolated = np.array([-1.0, -2.0, -3.0])
    with h5py.File(path, "w") as file:
        numbers = file.create_dataset("atomic_numbers", (frames, atoms), np.uint8)
        positions = file.create_dataset("positions", (frames, atoms, 3), np.float64)
        energy = file.create_dataset("energy", (frames,), np.float64)
        forces = file.create_dataset("forces", (frames, atoms, 3), np.float64)
        for first in range(0, frames, 10_000):
            rows = slice(first, min(first + 10_000, frames))
            kinds = rng.integers(0, 3, (rows.stop - first, atoms))
            moved = 0.08 * rng.normal(size=(rows.stop - first, atoms, 3))
            numbers[rows] = np.array([1, 6, 8])[kinds]
            positions[rows] = grid + moved
            energy[rows] = 2 * (moved**2).sum(axis=(1, 2)) + isolated[kinds].sum(axis=1) - 4 * atoms
            forces[rows] = -4 * moved


def write(folder: Path, frames: int, shards: int) -> dict[str, float]:
    from equijax.datasets.config import ReadOptions
    from equijax.datasets.shard_writer import write_shards

    start = time.perf_counter()
    options = ReadOptions.model_validate({"units": {"energy": "eV", "length": "angstrom"}})
    written = write_shards(
        [folder / "source.h5"], folder / "shards", options, frames_per_shard=-(-frames // shards), overwrite=True
    )
    return {"seconds": time.perf_counter() - start, "frames": written.frames}


def experiment_file(folder: Path, frames: int, epochs: int = 1000) -> Path:
    path = folder / "experiment.yaml"
    valid = min(500, frames // 20)
    path.write_text(EXPERIMENT.format(shards=folder / "shards", batch=BATCH, valid=valid, epochs=epochs))
    return path


def iterate(folder: Path, frames: int, limit: float) -> dict[str, float]:
    from equijax.experiment import load_experiment
    from equijax.train.setup import build_task
    from equijax.train.streamed import StreamedSource

    start = time.perf_counter()
    task = build_task(load_experiment(experiment_file(folder, frames)))
    ready = time.perf_counter()
    source = task.train
    assert isinstance(source, StreamedSource)
    seen = np.zeros(len(source.frames), bool)
    plan = source.plan(0)
    for number, window in enumerate(source.windows(plan)):
        first, end = int(plan.windows[number]), int(plan.windows[number + 1])
        for index in (index for position in range(first, end) for index in plan[position]):
            assert len(window.structure(index)) > 0
            assert not seen[index]
            seen[index] = True
    assert seen.all()
    read = time.perf_counter()
    batched = 0
    for _, indices, _ in source.prefetched(source.plan(1)):
        batched += len(indices)
        if limit and time.perf_counter() - read > limit:
            break
    return {
        "start_seconds": ready - start,
        "frames": len(seen),
        "read_frames_per_second": len(seen) / (read - ready),
        "batched_frames": batched,
        "frames_per_second": batched / (time.perf_counter() - read),
    }


def train(folder: Path, frames: int, seconds: float, epochs: int) -> dict[str, float]:
    from equijax.experiment import load_experiment
    from equijax.train.loop import train as run

    directory = folder / "run"
    shutil.rmtree(directory, ignore_errors=True)
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM))
    timer.start()
    start, cpu = time.perf_counter(), time.process_time()
    with contextlib.suppress(SystemExit):
        run(load_experiment(experiment_file(folder, frames, epochs)), directory, quiet=True)
    timer.cancel()
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "train"]
    progress = json.loads(max((directory / "checkpoints").glob("*/progress.json")).read_text())["progress"]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "steps": progress["step"],
        "epochs": progress["epoch"],
        "frames_per_second": BATCH * (steps[-1]["step"] - steps[0]["step"]) / (steps[-1]["time_s"] - steps[0]["time_s"])
        if len(steps) > 1
        else 0.0,
    }


def worker(part: str, folder: Path, options: argparse.Namespace) -> None:
    result: dict[str, Any] = {}
    if part == "source":
        make_source(folder / "source.h5", options.frames, options.atoms)
    elif part == "write":
        result = dict(write(folder, options.frames, options.shards))
    elif part == "iterate":
        result = dict(iterate(folder, options.frames, options.batches))
    else:
        result = dict(train(folder, options.frames, options.train, options.epochs))
    result["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(result))


def measured(part: str, folder: Path, options: argparse.Namespace, frames: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--frames", str(frames)]
    command += [
        "--atoms",
        str(options.atoms),
        "--shards",
        str(options.shards),
        "--train",
        str(options.train),
        "--batches",
        str(options.batches),
        "--epochs",
        str(options.epochs),
    ]
    return dict(
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--atoms", type=int, default=5)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--train", type=float, default=120.0, help="seconds of training; 0 leaves it out")
    parser.add_argument("--epochs", type=int, default=1000, help="of training, where the seconds suffice")
    parser.add_argument("--batches", type=float, default=0.0, help="seconds of making batches; 0 is a whole epoch")
    parser.add_argument("--write", action="store_true", help="also write the source and the shards")
    parser.add_argument("--folder", type=Path, required=True, help="for the data; kept, and written over")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        worker(options.part, options.folder, options)
        return {}
    report: dict[str, Any] = {"frames": options.frames, "atoms": options.atoms, "shards": options.shards}
    small = max(1000, options.frames // 100)
    parts = [*(("source", "write") if options.write else ()), "iterate", *(("train",) if options.train else ())]
    for part in parts:
        before = measured(part, options.folder / "small", options, small)
        result = measured(part, options.folder / "large", options, options.frames)
        if part == "source":
            continue
        manifest = json.loads((options.folder / "large" / "shards" / "manifest.json").read_text())
        shard = report["shard_bytes"] = max(entry["bytes"] for entry in manifest["shards"])
        result["extra_bytes"] = result["peak_bytes"] - before["peak_bytes"]
        result["extra_shards"] = result["extra_bytes"] / shard
        if "frames_per_second" not in result:
            result["frames_per_second"] = options.frames / result["seconds"]
        report[part] = result
        print(
            f"{part}: {result['frames_per_second']:.0f} frames/s, resident memory {result['peak_bytes'] / 2**20:.0f} "
            f"MiB, {result['extra_bytes'] / 2**20:.1f} MiB of it for the data = {result['extra_shards']:.2f} shards of "
            f"{shard / 2**20:.1f} MiB",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
