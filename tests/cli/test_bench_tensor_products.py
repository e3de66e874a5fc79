"""`equijax bench tensor-products`: a tiny run from end to end, and one-line refusals."""

from __future__ import annotations

import json

import pytest

from equijax.bench.tensor_products import TASKS
from equijax.cli import main as cli

TINY = ["bench", "tensor-products", "--seconds", "0.001", "--no-peers", "--channels", "1", "--batch", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--product", "clebsch"], "there is no tensor product 'clebsch'; did you mean 'clebsch_gordan'?"),
        (["--case", "edge"], "there is no case 'edge'; did you mean 'edges'?"),
        (["--lmax", "1,x"], "--lmax: is '1,x'; expected whole numbers of at least 0, as in 1,2,3"),
        (["--channels", "0"], "--channels: is '0'; expected whole numbers of at least 1, as in 1,2,3"),
        (["--edges", ""], "--edges: is ''; expected whole numbers of at least 1, as in 1,2,3"),
        (["--dtype", "half"], "--dtype: is 'half'; expected float32 or float64"),
        (["--compare", "nothing.jsonl"], "nothing.jsonl: cannot be read (No such file or directory)"),
        (["--product", "so2", "--case", "powers"], "none of so2 has the case 'powers'"),
    ],
)
def test_refusals(words, message, capsys):
    assert cli.run([*TINY, *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_run_its_file_and_the_comparison_with_it(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    words = [*TINY, "--case", "mimo_to_l", "--lmax", "0,1", "--product", "clebsch_gordan"]
    assert cli.run([*words, "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "[2/2] mimo_to_l L=1" in shown
    assert "allocator" in shown
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["task"] for record in records] == 2 * list(TASKS)
    assert {record["expressivity"] for record in records} == {1, 4}
    assert all(record["machine"]["processor"] and record["machine"]["jax"] for record in records)
    plots = tmp_path / "plots"
    words = ["bench", "tensor-products", "--replay", str(path), "--compare", str(path), "--plots", str(plots)]
    assert cli.run(words) == 0
    shown = capsys.readouterr().out
    assert "6 measurements in common" in shown
    assert "1.00" in shown
    assert sorted(file.name.rpartition("float32_")[2] for file in plots.iterdir()) == [
        "per_degree_of_freedom.png", "time.png"
    ]  # fmt: skip
