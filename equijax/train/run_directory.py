"""A run directory: its layout, the lock that keeps a second process out, and the check before a resume."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.weights.atomic_file import remove_leftovers, write_atomically

# Fields that do not change the numbers of a run, or (max_epochs) only how long it goes on.
SAFE_TO_CHANGE = (
    "training.max_epochs",
    "training.early_stopping",
    "training.checkpoint_every_seconds",
    "training.checkpoint_every_steps",
    "training.keep_checkpoints",
    "training.log_every_steps",
    "training.tensorboard",
    "training.on_nan",
    "training.devices",
    "matmul_precision",
    "model.edge_product.backend",
    "model.node_product.backend",
)

# What a run did whose configuration is from before there were these fields.
BEFORE_THERE_WAS = {
    "training.committee": 1,
    "training.devices": 1,
    "matmul_precision": "highest",
    "model.edge_product.backend": "xla",
    "model.node_product.backend": "xla",
}


class RunDirectory:
    """Paths of one run: `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model.safetensors`, and so on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.test_metrics = self.path / "test_metrics.json"
        self.report = self.path / "report.html"
        self.crash = self.path / "crash"

    def predictions(self, name: str) -> Path:
        """The predictions for one set of frames."""
        return self.path / f"predictions_{name}.npz"

    def holds_a_run(self) -> bool:
        return self.config.exists() or self.checkpoints.exists() or self.metrics.exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration as YAML 1.2."""
        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        text = io.StringIO()
        yaml.dump(dict(config), text)
        write_atomically(self.config, text.getvalue().encode())

    def remove_leftovers(self) -> None:
        """Delete temporary files of processes that were killed while they wrote a model or a report."""
        for path in (self.config, self.metrics, self.model, self.test_metrics, self.report):
            remove_leftovers(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold `run.lock`, which names this process and host; a second process is refused.

        The lock of a process that no longer runs is taken over with a warning. The kernel's lock (flock) goes
        with the process that held it; the text serves messages and file systems that do not share flock.
        """
        created = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise located(f"cannot be created ({error.strerror})", file=self.path) from error
        path = self.path / "run.lock"
        handle = _acquire(path)
        try:
            owner = _owner(handle)
            here = socket.gethostname()
            if owner is not None:
                if owner["host"] != here:
                    raise located(
                        f"is locked by process {owner['pid']} on host {owner['host']}",
                        file=self.path,
                        fix=f"if that process is gone, delete {path}",
                    )
                warnings.warn(
                    f"{path}: process {owner['pid']} on this host ended without releasing its lock; taking over",
                    EquijaxWarning,
                    stacklevel=3,
                )
            content = json.dumps({"pid": os.getpid(), "host": here}).encode()
            os.ftruncate(handle, 0)
            os.pwrite(handle, content, 0)
            yield
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        except EquijaxError:
            if _owner(handle) == {"pid": os.getpid(), "host": socket.gethostname()}:
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
            if created:  # nothing is left behind when the run was refused before it wrote anything
                with contextlib.suppress(OSError):
                    self.path.rmdir()


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(handle)
            os.close(handle)
            who = f"process {owner['pid']} on host {owner['host']}" if owner else "another process"
            raise located(f"is in use by {who}", file=path.parent, fix="choose another --output, or wait") from error
        # The file may have been unlinked by its owner between open and flock; then its lock guards nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        os.close(handle)


def _owner(handle: int) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        data = json.loads(os.pread(handle, 4096, 0))
        return {"pid": int(data["pid"]), "host": str(data["host"])}
    return None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`{"training.optimizer.name": "adam", ...}`; lists are flattened by index."""
    if isinstance(config, Mapping) and config:
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, (list, tuple)) and config:
        items = [(str(key), value) for key, value in enumerate(config)]
    else:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def refuse_changes(stored: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> list[str]:
    """Differences that are safe, as lines `key: old -> new`; raises with the full diff when one is not."""
    old, new = BEFORE_THERE_WAS | flatten(stored), BEFORE_THERE_WAS | flatten(current)
    safe: list[str] = []
    unsafe: list[str] = []
    schedule = dict(stored).get("training", {}).get("schedule", {})
    for key in sorted(set(old) | set(new)):
        if old.get(key) == new.get(key) and (key in old) == (key in new):
            continue
        line = f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        # The length of a descent follows max_epochs unless it is given by itself.
        length_matters = key == "training.max_epochs" and (
            schedule.get("name") in ("cosine", "linear") and schedule.get("epochs") is None
        )
        allowed = any(key == name or key.startswith(f"{name}.") for name in SAFE_TO_CHANGE)
        (safe if allowed and not length_matters else unsafe).append(line)
    if unsafe:
        raise located(
            "the configuration has changed since the run began: " + "; ".join(unsafe),
            file=run,
            fix="resume with the old values, or start a new run with another --output",
        )
    return safe


def refuse_changed_data(stored: Mapping[str, str], current: Mapping[str, str], run: Path) -> None:
    """Raise when a dataset file is gone, new, or has other bytes than when the run began."""
    lines = []
    for file in sorted(set(stored) | set(current)):
        if stored.get(file) != current.get(file):
            what = "changed" if file in stored and file in current else "added" if file in current else "gone"
            lines.append(f"{file} {what}")
    if lines:
        raise located(
            "dataset files are not those the run began with: " + ", ".join(lines),
            file=run,
            fix="restore them, or pass --allow-changed-data to continue with the new content",
        )
