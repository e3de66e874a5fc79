"""The files of a run: what exists is not replaced by accident, what is written continues without gaps or repeats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from equijax.errors import located
from equijax.md.trajectory import Log, Trajectory, open_trajectory


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """Names of the files of one run: a trajectory and a log for each replica."""

    trajectories: tuple[Path, ...]
    logs: tuple[Path, ...]
    restart: Path
    summary: Path

    @classmethod
    def beside(cls, trajectory: Path, replicas: int = 1) -> OutputFiles:
        """`md.xyz`, `md.jsonl`, `md.restart.npz`, `md.summary.json`; of several replicas `md-0.xyz`, `md-0.jsonl`."""
        names = [trajectory]
        if replicas > 1:
            names = [trajectory.with_stem(f"{trajectory.stem}-{replica}") for replica in range(replicas)]
        return cls(
            trajectories=tuple(names),
            logs=tuple(name.with_suffix(".jsonl") for name in names),
            restart=trajectory.with_suffix(".restart.npz"),
            summary=trajectory.with_suffix(".summary.json"),
        )

    def prepare(self, restart: bool, overwrite: bool) -> None:
        """Before a run that starts from the beginning. EquijaxError when there is something to lose."""
        existing = [path for path in (*self.trajectories, *self.logs, self.restart) if path.exists()]
        if existing and not overwrite:
            fix = "there is no restart file to continue from" if restart else "restart, overwrite, or another name"
            raise located("exists", file=existing[0], fix=fix)
        self.summary.parent.mkdir(parents=True, exist_ok=True)
        self.summary.unlink(missing_ok=True)

    @property
    def shown(self) -> str:
        """The trajectories, for messages."""
        first, last = self.trajectories[0], self.trajectories[-1]
        return str(first) if first == last else f"{first} to {last.name}"


class ReplicaOutput:
    """Open trajectory and log of one replica, new or continued from the progress that a restart file holds."""

    def __init__(self, trajectory: Path, log: Path, progress: dict[str, int] | None = None) -> None:
        self.trajectory: Trajectory = open_trajectory(trajectory, progress)
        self.log = Log(log, progress["log_bytes"] if progress else 0)

    @property
    def progress(self) -> dict[str, int]:
        """What a restart file has to know to continue them."""
        return {**self.trajectory.progress, "log_bytes": self.log.size}

    def close(self) -> None:
        self.trajectory.close()
        self.log.close()
