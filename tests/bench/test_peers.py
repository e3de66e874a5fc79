"""The peer benchmark without other libraries: its tables, its history, its page, and the loop of a worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmark_scripts():
    """They are scripts: they import each other from their own folder."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def time_record(library, milliseconds, date="2026-01-01", **fields):
    times = {"q1": 0.9 * milliseconds, "median": milliseconds, "q3": 1.1 * milliseconds}
    return {
        "date": date, "commit": "abc", "sources": "def", "machine": "m", "molecules": "x.xyz", "load_average": 0.5,
        "memory_gb": 12.0, "measure": "time", "task": "forces", "system": "molecule", "model": "MACE 128x0e",
        "dtype": "float32", "allocator": "default", "atoms": 27, "edges": 446, "library": library, "versions": {},
        "parameters": 5, "cpu_ms": times, "wall_ms": times, "calls": 9, "rounds": 3, **fields,
    }  # fmt: skip


def written(folder, records):
    import peer_history

    path = folder / "peers.jsonl"
    peer_history.append(path, records)
    (folder / "machines.json").write_text(json.dumps({"m": {"processor": "abacus"}}))
    return path


def test_every_case_has_workers_models_and_inputs():
    from inputs import SYSTEMS
    from peer_cases import LIBRARIES, MODELS, all_cases
    from peer_page import SYSTEMS as NAMES
    from peers import STEPS

    cases = all_cases()
    assert len({tuple(case.key.values()) for case in cases}) == len(cases)
    for case in cases:
        assert case.model in MODELS
        assert case.system in SYSTEMS
        assert case.system in NAMES
        assert case.task != "steps" or case.system in STEPS
        assert set(case.libraries) <= set(LIBRARIES)
        assert case.libraries[0].startswith("equijax")
    for library in LIBRARIES.values():
        assert (BENCHMARKS / "workers" / f"{library.worker}_worker.py").exists()
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    assert all(f"PEER_{library.environment} :=" in makefile for library in LIBRARIES.values() if library.environment)


def test_the_page_divides_within_one_turn(tmp_path):
    from peer_page import page

    records = [
        time_record("equijax", 2.0, "2026-01-01"),
        time_record("mlip", 5.0, "2026-01-01"),
        # later, with fewer libraries: not what the page shows
        time_record("equijax", 1.0, "2026-01-02"),
    ]
    text, results = page(written(tmp_path, records))
    assert len(results) == 1
    assert "| 2 (1.8 to 2.2) |" in text
    assert "5 (4.5 to 5.5), **2.50**" in text
    assert "abacus" in text
    assert "<!--" not in text
    both = [time_record("equijax", 1.0, "2026-01-03"), time_record("mlip", 4.0, "2026-01-03")]
    text, _ = page(written(tmp_path, both))
    assert "**4.00**" in text
    assert "**2.50**" not in text


def test_failures_and_gaps_are_on_the_page(tmp_path):
    from peer_page import page

    failed = time_record("mlip", 1.0) | {"failed": "no memory", "cpu_ms": None}
    text, _ = page(written(tmp_path, [time_record("equijax", 2.0), failed]))
    assert "| failed |" in text
    assert "- mlip, MACE 128x0e, forces of molecule, 27 atoms, float32: no memory (it may allocate 12 GB)" in text
    assert "Not measured on this machine: " in text
    text, _ = page(written(tmp_path, [time_record("mlip", 3.0, model="MACE 64x0e+64x1o")]))
    assert "| 3 (2.7 to 3.3) |" in text  # nothing to divide by


def test_resuming_needs_the_same_sources(tmp_path):
    import peer_history
    from peer_cases import all_cases

    path = written(tmp_path, [time_record("equijax", 2.0), time_record("mlip", 2.0)])
    records = peer_history.read(path)
    (case,) = [c for c in all_cases() if all(records[0][name] == value for name, value in c.key.items())]
    state = {"sources": "def", "machine": "m", "molecules": "x.xyz"}
    assert peer_history.libraries_done(records, case.key, state) == {"equijax", "mlip"}
    for changed in state:
        assert peer_history.libraries_done(records, case.key, state | {changed: "other"}) == set()


def test_quartiles():
    from peers import summary

    assert summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0, "min": 1.0, "max": 5.0}
    assert summary([7.0]) == {"q1": 7.0, "median": 7.0, "q3": 7.0, "min": 7.0, "max": 7.0}


def test_unknown_choices_are_refused(monkeypatch, capsys):
    import peers

    monkeypatch.setattr(sys, "argv", ["peers.py", "--tasks", "forces,trains"])
    with pytest.raises(SystemExit) as stopped:
        peers.main()
    assert stopped.value.code == 2
    assert "there is no 'trains'; expected some of forces, train, steps, neighbors" in capsys.readouterr().err


def test_a_worker_counts_and_says_what_went_wrong(tmp_path, monkeypatch):
    """A worker of a few lines, in a process, through the driver's own class."""
    import peer_workers

    (tmp_path / "serve.py").write_text((BENCHMARKS / "workers" / "serve.py").read_text())
    (tmp_path / "tiny_worker.py").write_text(
        "from serve import serve\n"
        "kept = []\n"
        "def build(case):\n"
        "    if case['end']:\n"
        "        raise SystemExit(3)\n"
        "    if not case['size']:\n"
        "        raise ValueError('nothing  to do')\n"
        "    return lambda: kept.append(bytearray(case['size'])), {'parameters': case['size']}\n"
        "serve(build)\n"
    )
    monkeypatch.setattr(peer_workers, "WORKERS", tmp_path)
    worker = peer_workers.Worker("tiny", sys.executable, 0, "default", memory_gb=4.0)
    answer = worker.ask({"size": 20_000_000, "end": False}, 0.0, 2)
    assert answer["parameters"] == 20_000_000
    assert len(answer["cpu_s"]) == len(answer["wall_s"]) == 2
    assert answer["import_wall_s"] > 0
    if answer["before_mb"] is not None:  # Linux
        assert answer["first_peak_mb"] - answer["before_mb"] > 19
        assert answer["later_peak_mb"] - answer["before_mb"] > 59  # the third of three that are kept
    assert worker.ask({"size": 0, "end": False}, 0.0, 1)["error"] == "ValueError: nothing to do"
    if sys.platform == "linux":
        assert "MemoryError" in worker.ask({"size": 8_000_000_000, "end": False}, 0.0, 1)["error"]
    with pytest.raises(peer_workers.WorkerStopped, match="tiny worker stopped with code 3"):
        worker.ask({"size": 1, "end": True}, 0.0, 1)
    worker.close()


def test_the_committed_page_is_what_the_history_gives():
    from peer_page import page

    text, _ = page(BENCHMARKS / "results" / "peers.jsonl")
    assert text == (BENCHMARKS.parent / "docs" / "performance.md").read_text(encoding="utf-8")
