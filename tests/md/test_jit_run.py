"""Runs of the compiled loop with their files: exact restarts, also after a kill, formats, replicas, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.md import run_md
from equijax.md.report import write_md_report
from equijax.md.restart import load_restart
from equijax.md.trajectory import read_trajectory
from tests.md.ensemble_cases import argon, morse_argon

OPTIONS = {
    "ensemble": "langevin",
    "temperature": 60.0,
    "timestep_fs": 4.0,
    "seed": 7,
    "dtype": "float32",
    "write_every": 5,
    "log_every": 5,
    "restart_every": 20,
}


def run(path: Path, steps: int, **changes):
    return run_md(morse_argon(), argon(), output=path, **{"steps": steps, **OPTIONS, **changes})


def assert_same_end(first: Path, second: Path) -> None:
    ends = [load_restart(path) for path in (first, second)]
    assert ends[0].step == ends[1].step
    assert ends[0].integrator == ends[1].integrator
    assert ends[0].extra.keys() == ends[1].extra.keys()
    for name, array in ends[0].extra.items():
        np.testing.assert_array_equal(array, ends[1].extra[name], err_msg=name)


CHILD = """
import sys
from pathlib import Path
from tests.md.test_jit_run import run
print("ready", flush=True)
run(Path(sys.argv[1]), int(sys.argv[2]), restart=True, write_every=1, log_every=1)
"""


def test_a_killed_run_continues_with_the_bits_of_a_straight_one(tmp_path):
    path, straight = tmp_path / "killed.xyz", tmp_path / "straight.xyz"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "1000000"], stdout=subprocess.PIPE)
    child.stdout.readline()
    while child.poll() is None and not (path.exists() and path.stat().st_size > 100_000):
        time.sleep(0.01)
    assert child.poll() is None, "the run ended by itself"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    frames = ase.io.read(path, ":")
    assert [frame.info["step"] for frame in frames] == list(range(len(frames)))
    for line in path.with_suffix(".jsonl").read_text().splitlines():
        json.loads(line)
    saved = load_restart(path.with_suffix(".restart.npz"))
    assert len(frames) > saved.step > 0
    steps = saved.step + 30
    summary = run(path, steps, restart=True, write_every=1, log_every=1)
    assert summary["steps"] == steps
    run(straight, steps, write_every=1, log_every=1)
    assert_same_end(path.with_suffix(".restart.npz"), straight.with_suffix(".restart.npz"))
    assert path.read_bytes() == straight.read_bytes()
    assert path.with_suffix(".jsonl").read_bytes() == straight.with_suffix(".jsonl").read_bytes()


def test_files_of_a_run_its_page_and_what_is_refused(tmp_path):
    path, records = tmp_path / "md.h5", []
    atoms = argon()
    before = atoms.positions.copy()
    summary = run(path, 60, on_log=records.append)
    np.testing.assert_array_equal(atoms.positions, before)
    assert summary["engine"] == "jit"
    assert summary["compile_count"] == 1
    assert summary["ns_per_day"] > 0
    assert json.loads((tmp_path / "md.summary.json").read_text()) == summary
    assert [record["step"] for record in records] == list(range(0, 61, 5))
    frames = list(read_trajectory(path))
    assert [frame.info["step"] for frame in frames] == list(range(0, 61, 5))
    saved = load_restart(tmp_path / "md.restart.npz")
    np.testing.assert_array_equal(frames[-1].positions, saved.positions[0])
    np.testing.assert_allclose(frames[-1].get_momenta(), saved.momenta[0], rtol=1e-14)
    assert frames[-1].get_potential_energy() == records[-1]["potential_energy"]
    page = write_md_report(summary).read_text()
    for word in ("langevin, 4 atoms, 0.240 ps", "ns/day", "stable for", "compilations", "drift"):
        assert word in page
    with pytest.raises(EquijaxError, match=r"md.h5: exists; restart, overwrite, or another name"):
        run(path, 60)
    with pytest.raises(EquijaxError, match=r"other settings \(seed: 7 -> 8\)"):
        run(path, 80, restart=True, seed=8)
    with pytest.raises(EquijaxError, match=r"other settings \(replicas: 1 -> 2\)"):
        run(path, 80, restart=True, replicas=2)
    with pytest.raises(EquijaxError, match="was written by the engine jit, not ase; use jit"):
        run(path, 80, restart=True, engine="ase")
    with pytest.raises(EquijaxError, match="there is no engine 'jti'; did you mean 'jit'"):
        run(path, 80, engine="jti")
    with pytest.raises(EquijaxError, match="the engine ase has no ensemble csvr"):
        run(tmp_path / "b.xyz", 80, engine="ase", ensemble="csvr")
    with pytest.raises(EquijaxError, match="replicas, a monitor and a boost need the engine jit"):
        run(tmp_path / "b.xyz", 80, engine="ase", replicas=2)
    # Cut short, as by a kill, and continued.
    run(path, 75, restart=True)
    assert [frame.info["step"] for frame in read_trajectory(path)] == list(range(0, 76, 5))
    with h5py.File(path) as file:
        assert file["particles/atoms/position"].keys() == {"step", "time", "value"}


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["nve", "nose-hoover", "csvr", "npt", "npt-full"])
def test_every_ensemble_restarts_bit_for_bit(tmp_path, ensemble):
    options = {"ensemble": ensemble, "pressure_gpa": 5.0 if ensemble.startswith("npt") else 0.0, "steps": 100}
    parts, straight = tmp_path / "parts.xyz", tmp_path / "straight.xyz"
    run(parts, **options | {"steps": 20})
    saved = (tmp_path / "parts.restart.npz").read_bytes()
    run(parts, **options | {"steps": 35}, restart=True)
    (tmp_path / "parts.restart.npz").write_bytes(saved)
    run(parts, **options, restart=True)
    run(straight, **options)
    assert_same_end(tmp_path / "parts.restart.npz", tmp_path / "straight.restart.npz")
    assert parts.read_bytes() == straight.read_bytes()


@pytest.mark.slow
def test_replicas_have_files_of_their_own(tmp_path):
    summary = run(tmp_path / "md.xyz", 40, replicas=3)
    alone = run(tmp_path / "alone.xyz", 40, seed=8)
    assert [replica["seed"] for replica in summary["replicas"]] == [7, 8, 9]
    assert summary["replicas"][1]["trajectory"] == str(tmp_path / "md-1.xyz")
    frames = [ase.io.read(tmp_path / name, ":") for name in ("md-1.xyz", "alone.xyz")]
    assert len(frames[0]) == len(frames[1]) == 9
    np.testing.assert_allclose(frames[0][-1].positions, frames[1][-1].positions, atol=1e-4)
    assert summary["mean_temperature"] != alone["mean_temperature"]
    write_md_report(summary)


@pytest.mark.slow
def test_sigterm_saves_and_ends(tmp_path):
    def stop(record):
        if record["step"] == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    summary = run(tmp_path / "md.xyz", 10**6, on_log=stop)
    assert summary["interrupted"] == "SIGTERM"
    assert summary["steps"] == load_restart(tmp_path / "md.restart.npz").step < 200
