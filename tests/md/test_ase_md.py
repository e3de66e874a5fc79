"""MD through ASE: conservation, temperature, exact restarts, readable output after a kill, clear stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from equijax import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.md import run_md
from equijax.md.ensembles import draw_momenta
from equijax.md.restart import load_restart
from tests.toy_model import stretched, toy_potential

POTENTIAL = toy_potential(dtype="float64")
CALCULATOR = EquijaxCalculator(POTENTIAL)


def relaxed_crystal() -> Atoms:
    atoms = bulk("C", "diamond", a=4.4, cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def quiet(**changes):
    return {"steps": 60, "write_every": 5, "log_every": 5, "restart_every": 20, "engine": "ase", **changes}


def test_nve_conserves_energy_to_second_order(tmp_path):
    residuals = {}
    for timestep in (1.0, 0.5):
        summary = run_md(
            CALCULATOR,
            relaxed_crystal(),
            output=tmp_path / f"md_{timestep}.xyz",
            temperature=100.0,
            timestep_fs=timestep,
            **quiet(steps=int(150 / timestep), log_every=1, write_every=50),
        )
        assert summary["drift_ratio"] < 0.1
        residuals[timestep] = summary["drift_residual_mev_per_atom"]
    assert 3.5 < residuals[1.0] / residuals[0.5] < 4.5


def test_momenta_are_seeded_and_sum_to_zero():
    atoms = bulk("C") * (8, 8, 8)
    momenta = draw_momenta(atoms, 300.0, seed=3)
    np.testing.assert_array_equal(momenta, draw_momenta(atoms, 300.0, seed=3))
    assert np.abs(momenta - draw_momenta(atoms, 300.0, seed=4)).max() > 0.1
    np.testing.assert_allclose(momenta.sum(axis=0), 0, atol=1e-11)
    kinetic = np.sum(momenta**2 / (2 * atoms.get_masses()[:, None]))
    temperature = 2 * kinetic / ((3 * len(atoms) - 3) * units.kB)
    assert temperature == pytest.approx(300, rel=5 * np.sqrt(2 / (3 * len(atoms))))


@pytest.mark.parametrize("ensemble", ["langevin", "npt"])
def test_thermostats_keep_temperature_and_a_conserved_quantity(tmp_path, ensemble):
    atoms = bulk("C", "diamond", a=4.4, cubic=True) * (2, 1, 1)
    summary = run_md(
        CALCULATOR,
        atoms,
        output=tmp_path / "md.xyz",
        ensemble=ensemble,
        temperature=200.0,
        timestep_fs=1.0,
        friction_per_fs=0.05,
        pressure_gpa=5.0 if ensemble == "npt" else 0.0,
        **quiet(steps=600, log_every=10, write_every=100),
    )
    records = [json.loads(line) for line in (tmp_path / "md.jsonl").read_text().splitlines()[1:]]
    total = np.array([record["total_energy"] for record in records])
    conserved = np.array([record["conserved_energy"] for record in records])
    assert np.ptp(conserved) < 0.1 * np.ptp(total)
    later = np.mean([record["temperature"] for record in records[20:]])
    assert 100 < later < 300  # 48 degrees of freedom over 400 fs
    if ensemble == "npt":
        assert np.ptp([record["volume"] for record in records]) > 1
    assert summary["ensemble"] == ensemble


def final_state(path: Path) -> dict:
    restart = load_restart(path)
    return {
        "positions": restart.positions,
        "momenta": restart.momenta,
        "cell": restart.cell,
        "integrator": restart.integrator,
    }


@pytest.mark.parametrize(("ensemble", "dtype"), [("nve", "float64"), ("langevin", "float32"), ("npt", "float32")])
def test_a_restarted_run_has_the_bits_of_a_straight_one(tmp_path, ensemble, dtype):
    options = {"ensemble": ensemble, "temperature": 400.0, "timestep_fs": 1.0, "dtype": dtype, "seed": 7}
    start = bulk("C", "diamond", a=4.0, cubic=True)
    run_md(POTENTIAL, start, output=tmp_path / "straight.xyz", **options, **quiet())
    # Stops between two restart files, as if killed: what was written after the last one is cut off.
    run_md(POTENTIAL, start, output=tmp_path / "parts.xyz", **options, **quiet(steps=20))
    saved = (tmp_path / "parts.restart.npz").read_bytes()
    run_md(POTENTIAL, start, output=tmp_path / "parts.xyz", restart=True, **options, **quiet(steps=35))
    (tmp_path / "parts.restart.npz").write_bytes(saved)
    run_md(POTENTIAL, start, output=tmp_path / "parts.xyz", restart=True, **options, **quiet())
    straight, parts = (final_state(tmp_path / f"{name}.restart.npz") for name in ("straight", "parts"))
    for name in ("positions", "momenta", "cell"):
        np.testing.assert_array_equal(parts[name], straight[name])
    assert parts["integrator"] == straight["integrator"]
    for suffix in (".xyz", ".jsonl"):
        assert (tmp_path / f"parts{suffix}").read_text() == (tmp_path / f"straight{suffix}").read_text()


def test_binary_trajectories_continue_too(tmp_path):
    options = {"output": tmp_path / "md.traj", "ensemble": "langevin"}
    run_md(CALCULATOR, stretched("CH4"), **options, **quiet(steps=20))
    run_md(CALCULATOR, stretched("CH4"), restart=True, **options, **quiet(steps=40))
    frames = ase.io.read(tmp_path / "md.traj", ":")
    assert [frame.info["step"] for frame in frames] == list(range(0, 41, 5))
    restart = load_restart(tmp_path / "md.restart.npz")
    np.testing.assert_array_equal(frames[-1].positions, restart.positions)
    np.testing.assert_array_equal(frames[-1].get_momenta(), restart.momenta)


CHILD = """
import sys
from equijax.md import run_md
from tests.toy_model import stretched, toy_potential
print("ready", flush=True)
run_md(toy_potential(dtype="float64"), stretched("C6H6"), steps=10**6, output=sys.argv[1], ensemble="langevin",
       engine="ase", write_every=1, log_every=1, restart_every=10, restart=True)
"""


def test_killed_runs_leave_readable_files_and_continue(tmp_path):
    path = tmp_path / "md.xyz"
    reached = -1
    for round_ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        target = 40_000 + (path.stat().st_size if path.exists() else 0)
        while child.poll() is None and not (path.exists() and path.stat().st_size > target):
            time.sleep(0.02)
        assert child.poll() is None, "the run ended by itself"
        time.sleep(0.013 * round_)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        frames = ase.io.read(path, ":")
        assert [frame.info["step"] for frame in frames] == list(range(len(frames)))
        assert load_restart(tmp_path / "md.restart.npz").step > reached
        reached = load_restart(tmp_path / "md.restart.npz").step
        assert len(frames) - 1 >= reached
        for line in (tmp_path / "md.jsonl").read_text().splitlines():
            json.loads(line)


def test_sigterm_saves_and_ends(tmp_path):
    def stop(record):
        if record["step"] == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    summary = run_md(CALCULATOR, stretched("CH4"), output=tmp_path / "md.xyz", on_log=stop, **quiet(steps=10**6))
    assert summary["interrupted"] == "SIGTERM"
    assert summary["steps"] == load_restart(tmp_path / "md.restart.npz").step == 15


def test_summary_is_returned_and_written(tmp_path):
    start = stretched("CH4")
    before = start.positions.copy()
    records = []
    summary = run_md(CALCULATOR, start, output=tmp_path / "md.xyz", on_log=records.append, **quiet())
    assert json.loads((tmp_path / "md.summary.json").read_text()) == summary
    assert summary["time_ps"] == pytest.approx(0.03)
    assert summary["ns_per_day"] > 0
    assert summary["us_per_atom_step"] > 0
    assert [record["step"] for record in records] == list(range(0, 61, 5))
    np.testing.assert_array_equal(start.positions, before)
    assert not start.has("momenta")


def test_one_compilation_per_run(tmp_path):
    crystal = bulk("C", "diamond", a=4.0, cubic=True)
    summary = run_md(POTENTIAL, crystal, output=tmp_path / "md.xyz", **quiet(steps=300, temperature=300.0))
    assert summary["compile_count"] == 1


def test_c4_explosion_names_step_and_atom_and_keeps_the_trajectory(tmp_path):
    atoms = molecule("C6H6")
    atoms.positions[7] = atoms.positions[0] + [0.3, 0, 0]
    with pytest.raises(
        EquijaxError,
        match=r"MD stopped at step \d+ \(.* fs\): the temperature is \d+ K, more than 10000 K; fastest is atom 7 "
        r"\(H\) .*trajectory until then is in .*md.xyz",
    ):
        run_md(CALCULATOR, atoms, output=tmp_path / "md.xyz", **quiet())
    frames = ase.io.read(tmp_path / "md.xyz", ":")
    assert len(frames) >= 2


def test_c3_positions_that_become_nan_name_step_and_atom(tmp_path):
    class Broken(EquijaxCalculator):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            if self.compile_count and self.calls == 12:
                self.results["forces"][3, 1] = np.nan
            self.calls += 1

        calls = 0

    with pytest.raises(EquijaxError, match=r"MD stopped at step 12 \(6 fs\): atom 3 position or momentum is not"):
        run_md(Broken(POTENTIAL), stretched("CH4"), output=tmp_path / "md.xyz", **quiet())
    frames = ase.io.read(tmp_path / "md.xyz", ":")
    assert frames[-1].info["step"] == 10
    assert all(np.isfinite(frame.positions).all() for frame in frames)
    assert load_restart(tmp_path / "md.restart.npz").step == 0


def test_c4_atom_that_flies_away_names_step_and_atom(tmp_path):
    atoms = stretched("CH4")
    atoms.set_momenta([[0, 0, 0]] * 4 + [[1e7, 0, 0]])
    with pytest.raises(EquijaxError, match=r"MD stopped at step 1 .*atom 4 .*has flown away"):
        run_md(CALCULATOR, atoms, output=tmp_path / "md.xyz", velocities="keep", **quiet())


def test_existing_output_is_not_overwritten(tmp_path):
    options = {"output": tmp_path / "md.xyz", **quiet(steps=10)}
    run_md(CALCULATOR, stretched("CH4"), **options)
    content = (tmp_path / "md.xyz").read_bytes()
    with pytest.raises(EquijaxError, match=r"md.xyz: exists; restart, overwrite, or another name"):
        run_md(CALCULATOR, stretched("CH4"), **options)
    assert (tmp_path / "md.xyz").read_bytes() == content
    run_md(CALCULATOR, stretched("CH4"), overwrite=True, seed=1, **options)
    assert (tmp_path / "md.xyz").read_bytes() != content


def test_restart_of_another_run_is_refused(tmp_path):
    options = {"output": tmp_path / "md.xyz", "restart": True, **quiet(steps=20)}
    run_md(CALCULATOR, stretched("CH4"), **options)
    with pytest.raises(EquijaxError, match=r"other settings \(seed: 0 -> 1; timestep_fs: 0.5 -> 1.0\)"):
        run_md(CALCULATOR, stretched("CH4"), seed=1, timestep_fs=1.0, **options)
    with pytest.raises(EquijaxError, match="written for other atoms"):
        run_md(CALCULATOR, stretched("H2O"), **options)
    with pytest.raises(EquijaxError, match="another model or precision"):
        run_md(toy_potential(seed=1), stretched("CH4"), **options)
    (tmp_path / "md.restart.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(EquijaxError, match=r"md.restart.npz: is not a restart file or damaged"):
        run_md(CALCULATOR, stretched("CH4"), **options)
    (tmp_path / "md.restart.npz").unlink()
    with pytest.raises(EquijaxError, match="exists; there is no restart file to continue from"):
        run_md(CALCULATOR, stretched("CH4"), **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ensemble": "nvt"}, "ensemble"),
        ({"temprature": 300.0}, "did you mean 'temperature'"),
        ({"timestep_fs": -1.0}, "timestep_fs"),
        ({"temperature": float("nan")}, "temperature"),
        ({"steps": 0}, "steps is 0; expected a positive integer"),
        ({"log_every": 2.5}, "log_every is 2.5"),
        ({"output": "md.pdb"}, "cannot have the suffix '.pdb'"),
        ({"ensemble": "npt"}, "npt needs a cell that is periodic"),
        ({"dtype": "float32"}, "the calculator that was given works in float64"),
    ],
)
def test_wrong_settings(tmp_path, monkeypatch, wrong, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EquijaxError, match=message):
        run_md(CALCULATOR, stretched("CH4"), **{"output": "md.xyz", **quiet(), **wrong})
    assert not list(tmp_path.iterdir())
