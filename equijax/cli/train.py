"""`equijax train`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from equijax.errors import located

MIN_FREE_BYTES = 50_000_000
"""Less than this on the disk of the run directory and a run does not start: its checkpoints would not fit."""


def train(
    config: Annotated[Path, typer.Argument(help="Experiment file (YAML); `equijax template mace` writes one.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value: --set training.max_epochs=10")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/CONFIG")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run in the output directory first.")
    ] = False,
    allow_changed_data: Annotated[
        bool, typer.Option("--allow-changed-data", help="Resume although dataset files have changed.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only warnings and errors.")] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, for one run in several processes.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes there are.")] = None,
    process_id: Annotated[int | None, typer.Option(help="Which of them this is, from 0.")] = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for the other processes at the start.")] = 300.0,
) -> None:
    """Train a model as an experiment file says, or continue a run that was stopped.

    With `training.devices: all` the devices of a machine share the work; with --coordinator, --processes and
    --process-id, or under SLURM's srun, those of several processes.
    """
    from equijax.doctor import require_healthy_backend
    from equijax.experiment import load_experiment
    from equijax.train.launch import launched, requested_launch

    if resume and overwrite:
        raise located("--resume and --overwrite exclude each other", file="equijax train")
    experiment = load_experiment(config, set_ or ())
    directory = output or Path("runs") / config.stem
    if experiment.fine_tuning is not None and overwrite:
        refuse_to_remove(experiment.fine_tuning.model, directory)
    launch = requested_launch(coordinator, processes, process_id)
    with launched(launch, wait):
        if launch is None or launch.process == 0:
            prepare_output(directory, resume=resume, overwrite=overwrite)
        require_healthy_backend()

        from equijax.train.loop import train as run

        run(experiment, directory, resume=resume, quiet=quiet, allow_changed_data=allow_changed_data)


def refuse_to_remove(model: Path, directory: Path) -> None:
    """A run cannot replace the run whose model it starts from."""
    if directory.resolve() in model.resolve().parents:
        raise located(
            "lies in the output directory, which --overwrite would remove first",
            file=model,
            key="fine_tuning.model",
            fix="choose another --output",
        )


def prepare_output(directory: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a place that cannot take a run, before anything is read or compiled.

    A directory with a run is refused unless it is to be continued or removed; so is one that cannot be created
    or written to, or whose disk is almost full.
    """
    from equijax.train.run_directory import RunDirectory

    if directory.exists() and not directory.is_dir():
        raise located("is a file", file=directory, key="--output", expected="a directory")
    if RunDirectory(directory).holds_a_run() and not resume:
        if not overwrite:
            raise located(
                "already holds a run",
                file=directory,
                fix="choose another --output, continue it with --resume, or remove it with --overwrite",
            )
        remove_run(directory)
    probe = directory / f".probe.{os.getpid()}"
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(1 << 16))
    except OSError as error:
        raise located(f"cannot be written to ({error.strerror})", file=directory, key="--output") from error
    finally:
        if directory.is_dir():
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(directory).free
    if is_new:
        directory.rmdir()  # a run that is refused later leaves nothing behind
    if free < MIN_FREE_BYTES:
        raise located(
            f"has {free / 1e6:.0f} MB left on its disk",
            file=directory,
            key="--output",
            expected=f"at least {MIN_FREE_BYTES / 1e6:.0f} MB for checkpoints",
        )


def remove_run(directory: Path) -> None:
    """Delete what `equijax train` writes, and nothing else, from a directory that no process is using."""
    from equijax.train.run_directory import RunDirectory

    with RunDirectory(directory).locked():
        for name in ("checkpoints", "crash", "tensorboard"):
            if (directory / name).is_dir() and not (directory / name).is_symlink():
                shutil.rmtree(directory / name)
        names = ("config.yaml", "metrics.jsonl", "model.safetensors", "test_metrics.json", "report.html")
        files = [directory / name for name in (*names, "data_summary.json", "worst_frames.xyz", "curves.png")]
        for path in (*files, *directory.glob("hamiltonians_*.npz"), *directory.glob("predictions_*.npz")):
            path.unlink(missing_ok=True)
