"""The history of the peer benchmark: one JSON line per measurement, with date, commit and machine.

Records of one case that were measured in turn have the same `date`; only these may be divided by each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

HERE = Path(__file__).parent
MEASURED = ("equijax", "benchmarks/workers", "benchmarks/inputs.py", "benchmarks/peer_cases.py")
"""What the times depend on."""
KEY = ("measure", "task", "system", "model", "dtype", "allocator")


def describe_machine() -> dict[str, Any]:
    """Processor, caches, memory, kernel and C library. No names of hosts or users."""
    facts: dict[str, Any] = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "family, model, stepping": "-".join(_cpuinfo(name) or "?" for name in ("cpu family", "model", "stepping")),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "C library": " ".join(platform.libc_ver()),
    }
    return facts


def fingerprint(machine: dict[str, Any]) -> str:
    """Eight digits that two equal machines share."""
    return hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:8]


def _cpuinfo(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")


def _caches() -> str:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found.append(f"L{level}{'' if kind == 'Unified' else kind[0].lower()} {size}")
    return ", ".join(found)


def describe_sources() -> dict[str, str]:
    """`commit`, and `sources`, a digest of the files in it that are measured: other commits do not change it.

    Both end with a + when files have been changed since.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True, check=True).stdout

    try:
        changed = "+" if git("status", "--porcelain", "--", *MEASURED).strip() else ""
        digest = hashlib.sha256(git("ls-tree", "HEAD", "--", *MEASURED).encode()).hexdigest()[:8]
        return {"commit": git("rev-parse", "--short", "HEAD").strip() + changed, "sources": digest + changed}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "sources": "unknown+"}


def append(path: Path, records: Iterable[Record]) -> None:
    """Add lines in one write, so that an interrupted run leaves whole cases."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remember_machine(path: Path, machine: dict[str, Any]) -> str:
    """Write what the machine is beside the history; its fingerprint."""
    known = json.loads(path.read_text()) if path.exists() else {}
    name = fingerprint(machine)
    if name not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known | {name: machine}, indent=1) + "\n")
    return name


def read(path: Path) -> list[Record]:
    """All records, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def libraries_done(records: Iterable[Record], key: dict[str, str], state: dict[str, str]) -> set[str]:
    """Libraries that have a record of this case in this state (sources, machine, molecules)."""
    wanted = {**key, **state}
    return {r["library"] for r in records if all(r.get(name) == value for name, value in wanted.items())}


def latest(records: Iterable[Record], machine: str) -> dict[tuple[str, ...], dict[str, Record]]:
    """Per case the records that were measured in turn: of those with the most libraries, the last; key as KEY."""
    turns: dict[tuple[str, ...], dict[str, dict[str, Record]]] = {}
    for record in records:
        if record["machine"] == machine:
            key = tuple(record[name] for name in KEY)
            turns.setdefault(key, {}).setdefault(record["date"], {})[record["library"]] = record
    chosen = {}
    for key, by_date in turns.items():
        date = max(by_date, key=lambda date, by_date=by_date: (len(by_date[date]), date))
        chosen[key] = by_date[date]
    return chosen
