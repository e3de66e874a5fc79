"""The timings of MD steps exist and fit together; their values are a matter of the machine."""

from __future__ import annotations

import json

import pytest

from equijax.bench.md import time_md
from equijax.cli import main as cli

TINY = {"hidden_irreps": "2x0e", "lmax": 1, "correlation": 1, "radial_mlp": [4], "num_layers": 1, "cutoff": 3.0}
WORDS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.slow
def test_both_engines_take_turns():
    shown = []
    timings = time_md(("mace",), ("ethanol",), dtype="float64", seconds=0.0, overrides=TINY, report=shown.append)
    assert timings == shown
    assert [(t.system, t.engine, t.dtype, t.atoms) for t in timings] == [
        ("ethanol", "jit", "float64", 9),
        ("ethanol", "ase", "float64", 9),
    ]
    for timing in timings:
        assert 0 < timing.best_s <= timing.lower_quartile_s <= timing.median_s <= timing.upper_quartile_s
        assert timing.samples >= 3
        # 0.5 fs per step: in a day 0.5e-6 ns x 86400 s / (s per step)
        assert timing.ns_per_day == pytest.approx(0.5e-6 * 86400 / timing.median_s)


def test_command_writes_what_it_shows(tmp_path, capsys):
    path = tmp_path / "md.json"
    words = ["bench", "md", "--model", "mace", "--system", "ethanol", "--engine", "ase", "--seconds", "0", *WORDS]
    assert cli.run([*words, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    (timing,) = json.loads(path.read_text())["timings"]
    assert timing["engine"] == "ase"
    assert f"{1e3 * timing['median_s']:.2f}" in out
    assert "steps of 0.5 fs" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "maze"], "there is no model 'maze'; did you mean 'mace'?"),
        (["--system", "ethan"], "there is no system 'ethan'; did you mean 'ethanol'?"),
        (["--engine", "jitt"], "there is no engine 'jitt'; did you mean 'jit'?"),
        (["--dtype", "half"], "--dtype: is 'half'; expected float32 or float64"),
    ],
)
def test_refusals(words, message, capsys):
    assert cli.run(["bench", "md", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
