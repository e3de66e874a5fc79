"""metrics.jsonl: one JSON object per line, flushed as it is written, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from equijax.errors import EquijaxError, located
from equijax.weights.atomic_file import write_atomically


class MetricsLog:
    """Appends records to `path`; `records` is the number of lines that belong to the run so far."""

    def __init__(self, path: Path, records: int = 0, tensorboard: Any = None) -> None:
        self.path = path
        self.records = records
        self._tensorboard = tensorboard
        cut_to(path, records)
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Values that JSON cannot hold (NaN, infinity) become text."""
        try:
            self._stream.write(json.dumps(json_safe(record), allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise located(
                f"cannot be written ({error.strerror})",
                file=self.path,
                fix="the last checkpoint is intact; free space and use --resume",
            ) from error
        self.records += 1
        if self._tensorboard is not None and record["kind"] != "event":
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("step", "epoch"):
                    self._tensorboard.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def sync(self) -> None:
        """Make what was written survive a power cut; called before each checkpoint that counts these lines."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class SilentLog:
    """Counts records and writes none: the log of the processes beside the one that writes files."""

    def __init__(self, records: int = 0) -> None:
        self.records = records

    def write(self, record: dict[str, Any]) -> None:
        del record
        self.records += 1

    def sync(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing is open."""


def cut_to(path: Path, records: int) -> None:
    """Keep the first `records` lines of the file, atomically; a line without an end does not count."""
    content = path.read_bytes() if path.exists() else b""
    kept = b"".join(line + b"\n" for line in content.split(b"\n")[:-1][:records])
    if kept != content:
        write_atomically(path, kept)


def json_safe(value: Any) -> Any:
    """`value` with NaN and infinities written as text, numpy scalars as numbers."""
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def tensorboard_writer(directory: Path, step: int) -> Any:
    """A tensorboardX writer that forgets events after `step`. EquijaxError with the install line when missing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise EquijaxError(
            "training.tensorboard: needs tensorboardX, which is not installed; run: pip install 'equijax[tensorboard]'"
        ) from error
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)
