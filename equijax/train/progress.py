"""Where a run is, besides its arrays: saved as JSON in the same checkpoint as the arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

from equijax.train.schedule import PlateauState


@dataclasses.dataclass
class Progress:
    """Counters of the next thing to do. The data order and the random start follow from `seed` and `epoch`.

    `step`: batches done; `epoch`, `index`: epoch and position in it of the next batch; `stage`: 0 is before any
    of `training.stages`; `best_loss`: lowest validation loss of this stage (None before the first), reached at
    `best_epoch`; `bad_evaluations`: evaluations since; `wall_time`: seconds of training in all sessions;
    `records`: lines of metrics.jsonl that belong to this state; `sums`: error sums since the last training
    record; `phase`, `choice`: the form of the model, see `equijax.train.phases`.
    """

    seed: int
    step: int = 0
    epoch: int = 0
    index: int = 0
    stage: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    bad_evaluations: int = 0
    plateau: PlateauState = dataclasses.field(default_factory=PlateauState)
    wall_time: float = 0.0
    records: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    phase: str = ""
    choice: Any = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        return cls(**{**data, "plateau": PlateauState(**data["plateau"])})
