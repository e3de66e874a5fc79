"""A training task for several devices: its batches in parts, and what all processes must have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from typing import Any

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.devices import Devices
from equijax.train.environment import environment
from equijax.train.setup import TrainingTask
from equijax.train.streamed import StreamedSource


def shared_task(task: TrainingTask, devices: Devices | None) -> TrainingTask:
    """The task with every batch divided among `devices`; the same task for None, which is one device.

    Raises EquijaxError for shards, and for models that change their form while they train. Warns of devices without
    work.
    """
    if devices is None:
        return task
    if isinstance(task.train, StreamedSource):
        raise EquijaxError(
            "training.devices: several devices cannot share training frames in shards; expected training.devices: 1, "
            "or files as dataset.train"
        )
    if task.objective.phases is not None:
        raise EquijaxError(
            f"training.devices: this {task.model_config.name} changes its form while it trains (model.path_sparsity), "
            "which several devices cannot do together; expected training.devices: 1, or model.path_sparsity: 0"
        )
    shares = devices.shares
    largest = max(len(indices) for indices in task.train.plan(0))
    if largest < devices.count:
        warnings.warn(
            f"training.batch: no batch has more than {largest} structures, and {devices.count} devices share it; the "
            "others do nothing; fix: larger batches, or fewer devices",
            EquijaxWarning,
            stacklevel=2,
        )
    replay = task.replay
    if replay is not None:
        replay = dataclasses.replace(replay, valid=replay.valid.shared(shares))
    return dataclasses.replace(
        task, train=task.train.shared(shares), valid=task.valid.shared(shares), replay=replay, devices=devices
    )


def digests(task: TrainingTask) -> dict[str, bytes]:
    """sha256 of what must be equal in all processes, by what it is called in messages."""
    parts: dict[str, Any] = {
        "configuration": task.config,
        "set of data files": sorted(task.fingerprints.values()),
        "order of the data": [len(task.train.frames), task.train.plan(0), len(task.valid.frames)],
        "installation": environment()["versions"],
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).digest()
        for name, part in parts.items()
    }
