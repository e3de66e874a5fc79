"""What a run directory holds, read so that killed, partial and finished runs all work.

    config.yaml               the resolved experiment
    metrics.jsonl             one JSON object per line: {"kind": "train" | "valid" | "event", "epoch", "step",
                              "time_s", "learning_rate", "loss", "energy_rmse_per_atom", "forces_rmse", ...};
                              time_s is wall time since the start, cumulative over resumes; the last line may
                              be cut off by a kill
    data_summary.json         what was read: sets, elements, label coverage
    model.safetensors         the best model on the validation set
    test_metrics.json         {set name: the output of `equijax evaluate --json`}
    predictions_<set>.npz     labels and predictions per set: equijax.report.predictions.Predictions
    crash/                    config, versions, last batches and metrics of a run that stopped on an error
    md*.jsonl                 logs of `equijax md`: a line with "num_atoms" and "ensemble", then lines with
                              {"time_ps", "temperature", "potential_energy", "kinetic_energy",
                              "conserved_energy"} in ps, K and eV

Every file is optional. What cannot be read becomes a note in the report, not an exception.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from equijax.errors import EquijaxError, located
from equijax.report.predictions import Predictions, load_predictions

RUN_FILES = ("config.yaml", "metrics.jsonl", "model.safetensors", "test_metrics.json")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The readable content of a run directory; `notes` says what was missing or damaged."""

    directory: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    data_summary: dict[str, Any]
    test_metrics: dict[str, Any]
    predictions: dict[str, Predictions]
    md_logs: dict[str, list[dict[str, Any]]]
    model_metadata: dict[str, Any]
    crash: dict[str, str]
    notes: list[str]

    @property
    def is_finished(self) -> bool:
        """Whether the run said so, or left test results."""
        return bool(self.test_metrics) or any(
            record.get("kind") == "event" and record.get("event") == "finished" for record in self.records
        )


def read_run(directory: str | Path) -> RunFiles:
    """Read a run directory. Raises only when there is nothing of a run in it."""
    directory = Path(directory)
    if not directory.is_dir():
        raise located("is not a directory", file=directory, expected="the output directory of `equijax train`")
    notes: list[str] = []
    predictions = {}
    for path in sorted(directory.glob("predictions_*.npz")):
        try:
            predictions[path.stem.removeprefix("predictions_")] = load_predictions(path)
        except EquijaxError as error:
            notes.append(str(error))
    summary = _read_json(directory / "data_summary.json", notes)
    # In the order of the experiment rather than of the alphabet, which puts 1200K before 300K.
    order = {name: position for position, name in enumerate(summary.get("sets", {}))}
    predictions = dict(sorted(predictions.items(), key=lambda item: order.get(item[0], len(order))))
    files = RunFiles(
        directory=directory,
        config=_read_config(directory / "config.yaml", notes),
        records=_read_lines(directory / "metrics.jsonl", notes),
        data_summary=summary,
        test_metrics=_read_json(directory / "test_metrics.json", notes),
        predictions=predictions,
        md_logs={path.stem: _read_lines(path, notes) for path in sorted(directory.glob("md*.jsonl"))},
        model_metadata=_read_model_metadata(directory / "model.safetensors", notes),
        crash=_read_crash(directory / "crash"),
        notes=notes,
    )
    if not (files.config or files.records or files.predictions or files.test_metrics or files.md_logs):
        raise located("holds no run", file=directory, expected=f"some of {', '.join(RUN_FILES)}")
    return files


def _read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    from equijax.config import load_yaml

    if not path.exists():
        return {}
    try:
        return load_yaml(path)[0]
    except EquijaxError as error:
        notes.append(str(error))
        return {}


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records, damaged = [], 0
    for line in path.read_bytes().decode("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            damaged += bool(line.strip())
            continue
        if isinstance(record, dict):
            records.append(record)
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} left out")
    return records


def _read_model_metadata(path: Path, notes: list[str]) -> dict[str, Any]:
    # Only the JSON is wanted: a report must not fail or wait because the parameters are large or damaged.
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 10_000_000:
                raise ValueError("its header is too large")
            header = json.loads(file.read(size))
        parameters = 0
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for extent in entry["shape"]:
                    count *= extent
                parameters += count
        text = header.get("__metadata__", {}).get("equijax_model", "{}")
        return {**json.loads(text), "parameter_count": parameters, "file_bytes": path.stat().st_size}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}


def _read_crash(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        return {}
    texts = {}
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in (".txt", ".json", ".yaml", ".log"):
            texts[path.name] = path.read_text(encoding="utf-8", errors="replace")[:20_000]
    return texts
