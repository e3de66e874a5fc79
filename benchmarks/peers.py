"""equijax beside mace-torch, mlip, torchmd-net and nequix: time, first result and memory on the same inputs.

Each library runs in a process of its own environment, pinned to one core with one thread; the driver asks them in
turn, round after round, so that a busy machine slows all of them alike. Records go to a history, from which the page
docs/performance.md and its plots are made. What is compared: peer_cases.py; how: benchmarks/README.md.

    python benchmarks/peers.py --environments .venv-peers [--molecules data/3bpa/train_300K.xyz]
    python benchmarks/peers.py --environments .venv-peers --tasks forces --systems molecule --rounds 2 --seconds 0.3
    python benchmarks/peers.py --page        # the page from the history, nothing is measured
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import peer_history as history
from inputs import SYSTEMS, write_input
from peer_cases import LIBRARIES, MODELS, ROWS, Case, all_cases
from peer_workers import ALLOCATORS, Worker, WorkerStopped

HERE = Path(__file__).parent
STEPS = {"molecule": 20, "copper_500": 2, "copper_3000": 1}
"""MD steps per timed call."""
DYNAMICS = {"scale": 1e-3, "timestep_fs": 0.5}
"""Forces so weak that the atoms keep the velocities of 300 K: no untrained model explodes."""
PROBE_CALLS = 3


class Pool:
    """Workers that wait for their turn: one per library, of one precision and allocator at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.conditions = ("", "")
        self.workers: dict[str, Worker] = {}

    def new(self, library: str, allocator: str, environment: dict[str, str] | None = None) -> Worker:
        python = python_of(library, self.options)
        core, memory = self.options.core, self.options.memory_gb
        return Worker(LIBRARIES[library].worker, str(python), core, allocator, memory, environment)

    def get(self, library: str, case: Case) -> Worker:
        if (case.dtype, case.allocator) != self.conditions:
            self.close()
            self.conditions = (case.dtype, case.allocator)
        if library not in self.workers:
            # Not what is measured here, and the same programs come with both allocators.
            caches = cache_environment(self.options.history.parent / "inputs" / "compiled")
            self.workers[library] = self.new(library, case.allocator, caches)
        return self.workers[library]

    def drop(self, library: str) -> None:
        self.workers.pop(library).close()

    def close(self) -> None:
        for library in list(self.workers):
            self.drop(library)


def python_of(library: str, options: argparse.Namespace) -> Path:
    name = LIBRARIES[library].environment
    return options.environments / name / "bin" / "python" if name else Path(sys.executable)


def request(case: Case, library: str, given: dict[str, Any]) -> dict[str, Any]:
    """The case as a worker reads it."""
    fields = {"task": case.task, "dtype": case.dtype, **MODELS[case.model], **LIBRARIES[library].fields, **given}
    return fields | DYNAMICS | {"steps": STEPS[case.system]} if case.task == "steps" else fields


def measure_time(case: Case, given: dict[str, Any], pool: Pool, options: argparse.Namespace) -> dict[str, dict]:
    """Results per library, of calls in warm processes that take turns."""
    answers: dict[str, list[dict[str, Any]]] = {library: [] for library in case.libraries}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for library in case.libraries:
            if library in failed:
                continue
            try:
                answer = pool.get(library, case).ask(request(case, library, given), options.seconds, 1)
            except WorkerStopped as stopped:
                pool.drop(library)
                answer = {"error": str(stopped)}
            if "error" in answer:
                failed[library] = answer["error"]
            answers[library].append(answer)
    results: dict[str, dict[str, Any]] = {}
    for library, replies in answers.items():
        first = replies[0]
        results[library] = {"versions": first.get("versions"), "parameters": first.get("parameters")}
        if library in failed:
            results[library]["failed"] = failed[library]
            continue
        per_call = 1e-3 * STEPS[case.system] if case.task == "steps" else 1e-3
        for clock in ("cpu", "wall"):
            times = [t / per_call for reply in replies for t in reply[f"{clock}_s"]]
            results[library][f"{clock}_ms"] = summary(times)
        results[library] |= {
            "calls": sum(len(reply["cpu_s"]) for reply in replies),
            "rounds": len(replies),
        }
    return results


def measure_start(case: Case, given: dict[str, Any], pool: Pool, options: argparse.Namespace) -> dict[str, dict]:
    """Results per library, of fresh processes: a first one with empty caches of compiled programs, then a later one."""
    pool.close()
    results: dict[str, dict[str, Any]] = {library: {"starts": []} for library in case.libraries}
    for _ in range(options.starts):
        for library in case.libraries:
            found = results[library]
            folder = Path(tempfile.mkdtemp(prefix="peer-cache-"))
            for caches in ("empty", "filled"):
                if "failed" in found:
                    break
                worker = pool.new(library, case.allocator, cache_environment(folder))
                try:
                    answer = worker.ask(request(case, library, given), 0.0, PROBE_CALLS)
                except WorkerStopped as stopped:
                    answer = {"error": str(stopped)}
                worker.close()
                found |= {"versions": answer.get("versions"), "parameters": answer.get("parameters")}
                if "error" in answer:
                    found["failed"] = answer["error"]
                    break
                fields = ("import_wall_s", "import_cpu_s", "first_wall_s", "first_cpu_s")
                fields += ("before_mb", "first_peak_mb", "later_peak_mb")
                kept = {name: None if answer[name] is None else round(answer[name], 3) for name in fields}
                found["starts"].append({"caches": caches, **kept})
            shutil.rmtree(folder)
    return results


def cache_environment(folder: Path) -> dict[str, str]:
    """Where compiled programs are kept: JAX's cache for every library on it, Warp's for torchmd-net."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "WARP_CACHE_PATH": str(folder / "warp"),
    }


def summary(times: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes, to four digits."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    values = dict(zip(("q1", "median", "q3"), quartiles)) | {"min": min(times), "max": max(times)}
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options leave, with the libraries that are there."""
    packages = {library: library.split(",")[0] for library in LIBRARIES}
    missing = {p for library, p in packages.items() if not python_of(library, options).exists()}
    wanted = {p for p in options.libraries if p not in missing}
    for package in sorted(missing & set(options.libraries)):
        print(f"{package} is left out: there is no environment of it in {options.environments}", file=sys.stderr)
    chosen = []
    for case in all_cases():
        libraries = tuple(library for library in case.libraries if packages[library] in wanted)
        kept = all(value in getattr(options, name) for name, value in choices(case).items())
        if libraries and kept:
            chosen.append(Case(**case.key, libraries=libraries))
    return chosen


def choices(case: Case) -> dict[str, str]:
    """Options by name, and what this case has."""
    return {
        "measures": case.measure,
        "tasks": case.task,
        "systems": case.system,
        "models": case.model,
        "dtypes": case.dtype,
        "allocators": case.allocator,
    }


def run(options: argparse.Namespace) -> None:
    cases = chosen_cases(options)
    if not cases:
        raise SystemExit("no case of peer_cases.py has everything that was asked for")
    machine = history.remember_machine(options.history.with_name("machines.json"), history.describe_machine())
    sources = history.describe_sources()
    state = {
        "sources": sources["sources"],
        "machine": machine,
        "molecules": options.molecules.name if options.molecules else "clusters of ethanol",
    }
    pool = Pool(options)
    try:
        for number, case in enumerate(cases, 1):
            heading = f"[{number}/{len(cases)}] {case}"
            if options.resume and not state["sources"].endswith("+"):
                done = history.libraries_done(history.read(options.history), case.key, state)
                if done >= set(case.libraries):
                    print(f"{heading}: done before", flush=True)
                    continue
            given = write_input(options.history.parent / "inputs", case.system, case.task, options.molecules)
            measure = measure_time if case.measure == "time" else measure_start
            results = measure(case, given, pool, options)
            stamp = {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **sources,
                **state,
                "load_average": round(os.getloadavg()[0], 1),
                "memory_gb": options.memory_gb,
                **case.key,
                "atoms": given["atoms"],
                "edges": given["edges"],
            }
            history.append(options.history, [stamp | {"library": name} | found for name, found in results.items()])
            print(f"{heading}: {'; '.join(short(name, found) for name, found in results.items())}", flush=True)
    finally:
        pool.close()


def short(library: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{library} failed ({found['failed']})"
    if "cpu_ms" in found:
        return f"{library} {found['cpu_ms']['median']:.4g} ms"
    last = found["starts"][-1]
    return f"{library} {last['import_wall_s'] + last['first_wall_s']:.1f} s"


def names(allowed: Any) -> Any:
    """Type of an option that takes some of `allowed`, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for name in found:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; expected some of {', '.join(allowed)}")
        return found

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder of the other libraries")
    parser.add_argument("--molecules", type=Path, help="extxyz with 27-atom frames; rattled clusters without it")
    packages = tuple(dict.fromkeys(library.split(",")[0] for library in LIBRARIES))
    values = {
        "libraries": packages,
        "measures": ("time", "start"),
        "tasks": tuple(dict.fromkeys(row.task for row in ROWS)),
        "systems": tuple(SYSTEMS),
        "models": tuple(MODELS),
        "dtypes": ("float32", "float64"),
        "allocators": tuple(ALLOCATORS),
    }
    for name, allowed in values.items():
        text = f"some of {', '.join(allowed)}; all by default"
        parser.add_argument(f"--{name}", type=names(allowed), default=allowed, metavar="A,B", help=text)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per library, case and round; one call at least")
    parser.add_argument("--starts", type=int, default=3, help="pairs of fresh processes per library and case")
    parser.add_argument("--core", type=int, default=0, help="the core that every worker is pinned to")
    parser.add_argument("--memory-gb", type=float, default=12.0, help="what a worker may allocate")
    parser.add_argument("--history", type=Path, default=HERE / "results" / "peers.jsonl")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what this machine has measured of these sources"
    )
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where the page and its plots go")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page from the history")
    options = parser.parse_args()
    if not options.page:
        run(options)
    from peer_page import write_page

    write_page(options.history, options.docs)


if __name__ == "__main__":
    main()
