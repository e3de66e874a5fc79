"""The report: from finished, killed and damaged runs, self-contained, with correct numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.report import write_report
from equijax.report.curves import learning_curves
from equijax.report.dynamics import read_dynamics
from equijax.report.errors import error_row, rows_by_config_type, rows_by_element, worst_frames
from equijax.report.page import Page, shown
from equijax.report.parity import parity_plot, quantities, summary
from equijax.report.predictions import collect_predictions, load_predictions, save_predictions
from equijax.report.run_files import read_run
from equijax.structure import Structure


def frames(count: int = 6, stress: bool = False):
    rng = np.random.default_rng(0)
    structures, results = [], []
    for i in range(count):
        numbers = np.array([8, 1, 1])
        forces = rng.normal(size=(3, 3))
        labels = {"energy": np.float64(-2000.0 + i), "forces": forces}
        result = {"energy": np.float64(-2000.0 + i + 0.003), "forces": forces + 0.01}
        if stress:
            labels["stress"], result["stress"] = np.eye(3), np.eye(3) + 0.001
        info = {"config_type": "hot" if i % 2 else "cold"}
        positions = rng.normal(size=(3, 3))
        structures.append(
            Structure(numbers, positions, labels=labels, info=info, file="data/<water>.xyz", frame=10 + i)
        )
        results.append(result)
    # one frame is clearly the worst, at its second atom
    if count > 4:
        results[4]["forces"] = results[4]["forces"] + np.array([[0, 0, 0], [1.0, 0, 0], [0, 0, 0]])
    return structures, results


def metrics_lines(epochs: int = 5) -> list[str]:
    lines = []
    for epoch in range(epochs):
        for kind, at in (("train", epoch), ("valid", epoch + 1)):
            record = {"kind": kind, "epoch": at, "step": 10 * epoch, "time_s": 2.0 * epoch, "learning_rate": 0.01}
            record |= {"loss": 1.0 / (1 + epoch), "energy_rmse_per_atom": 0.01, "forces_rmse": 0.1, "stage": epoch // 3}
            lines.append(json.dumps(record))
    lines.append(json.dumps({"kind": "event", "event": "stage", "epoch": 3, "stage": 1}))
    return lines


def finished_run(directory):
    directory.mkdir()
    save_predictions(directory / "predictions_test.npz", *frames())
    (directory / "metrics.jsonl").write_text("\n".join(metrics_lines()) + "\n")
    (directory / "config.yaml").write_text("dtype: float32\nmodel: {name: mace}\ntraining: {ema_decay: 0.99}\n")
    (directory / "test_metrics.json").write_text('{"test": {"n_structures": 6}}')
    (directory / "data_summary.json").write_text(
        json.dumps({"sets": {"train": {"frames": 7, "labels": {"energy": 7}}}, "atomic_energies": {"H": -13.6}})
    )
    md = [
        {"time_ps": 0.01 * i, "temperature": 300.0, "potential_energy": -5.0 - 0.001 * i, "kinetic_energy": 0.002 * i,
         "num_atoms": 3, "ensemble": "nve"}
        for i in range(20)
    ]  # fmt: skip
    (directory / "md_nve.jsonl").write_text("\n".join(map(json.dumps, md)))
    return directory


class Links(HTMLParser):
    """Everything in a page that a browser could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_a_finished_run_gives_a_self_contained_page(tmp_path):
    path = write_report(finished_run(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not {"script", "link", "iframe", "object"} & set(links.tags)
    assert not re.search(r"url\(|@import", text)
    for heading in ("Accuracy", "Learning curves", "Predictions against reference", "Where the errors are",
                    "Molecular dynamics", "Data", "Configuration"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert "has not finished" not in text
    assert "&lt;water&gt;.xyz" in text
    assert "<water>" not in text
    assert text.count("<img") == 3
    assert len(text) < 5_000_000
    worst = (tmp_path / "run" / "worst_frames.xyz").read_text()
    assert worst.count("Properties=") == 6
    assert "forces_predicted" in worst


def test_a_killed_run_gives_a_page_that_says_so(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("dtype: float32\n")
    (run / "metrics.jsonl").write_text("\n".join(metrics_lines(2)) + '\n{"kind": "tra')
    text = write_report(run).read_text()
    assert "has not finished" in text
    assert "1 damaged line left out" in text
    assert "Learning curves" in text


def test_a_run_before_its_first_epoch_and_a_crashed_run(tmp_path):
    run = tmp_path / "run"
    (run / "crash").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"kind": "event", "event": "crash", "epoch": 0, "message": "loss is nan"}\n')
    (run / "crash" / "report.json").write_text('{"what": "<b>loss</b>"}')
    text = write_report(run).read_text()
    assert "stopped on an error. loss is nan" in text
    assert "&lt;b&gt;loss" in text


@pytest.mark.parametrize("damage", ["truncated", "junk", "pickle"])
def test_damaged_files_become_notes(tmp_path, damage):
    run = finished_run(tmp_path / "run")
    path = run / "predictions_test.npz"
    content = path.read_bytes()
    payload = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x94\x8c\x04true\x85R."
    path.write_bytes({"truncated": content[:200], "junk": b"junk", "pickle": payload}[damage])
    (run / "test_metrics.json").write_text("{")
    (run / "model.safetensors").write_bytes(b"\xff" * 100)
    text = write_report(run).read_text()
    assert "is not a readable predictions file" in text
    assert "test_metrics.json cannot be read" in text
    assert "model.safetensors cannot be read" in text


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(EquijaxError, match=r"holds no run; expected some of config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(EquijaxError, match="is not a directory"):
        write_report(tmp_path / "nothing")


def test_predictions_survive_the_file(tmp_path):
    structures, results = frames(stress=True)
    del structures[0].labels["forces"]
    path = save_predictions(tmp_path / "predictions_x.npz", structures, results)
    loaded = load_predictions(path)
    assert len(loaded) == 6
    assert np.isnan(loaded.forces_true[:3]).all()
    np.testing.assert_array_equal(loaded.forces_pred, np.concatenate([r["forces"] for r in results]))
    np.testing.assert_array_equal(loaded.frame, np.arange(10, 16))
    np.testing.assert_array_equal(loaded.frame_of_atom, np.repeat(np.arange(6), 3))
    assert list(tmp_path.iterdir()) == [path]


def test_error_tables_have_the_right_numbers():
    predictions = collect_predictions(*frames())
    row = error_row("all", predictions)
    assert row.count == 6
    assert row.energy_rmse == pytest.approx(1.0)  # 3 meV over three atoms
    assert row.forces_max == pytest.approx(1010)
    assert np.isnan(row.stress_rmse)
    assert [r.name for r in rows_by_config_type(predictions)] == ["cold", "hot"]
    assert {r.name: r.count for r in rows_by_element(predictions)} == {"H": 12, "O": 6}
    assert rows_by_element(predictions)[1].forces_rmse == pytest.approx(10.0)
    worst = worst_frames(predictions, 2)
    assert (worst[0].index, worst[0].frame, worst[0].worst_atom) == (4, 14, 1)


def test_worst_frames_fall_back_to_energies():
    structures, results = frames()
    for structure in structures:
        del structure.labels["forces"]
    results[2]["energy"] = results[2]["energy"] + 1.0
    worst = worst_frames(collect_predictions(structures, results))
    assert worst[0].index == 2
    assert worst[0].worst_atom == -1


def test_summary_of_a_perfect_and_a_constant_prediction():
    values = np.array([1.0, 2.0, 3.0])
    assert summary(values, values) == {"n": 3, "rmse": 0, "mae": 0, "max": 0, "r2": 1}
    assert np.isnan(summary(np.ones(3), np.ones(3))["r2"])
    assert summary(values, np.full(3, 2.0))["r2"] == pytest.approx(0.0)


def test_parity_shows_the_labels_that_exist():
    assert [q.title for q in quantities(collect_predictions(*frames()))] == ["Energy per atom", "Force components"]
    assert len(quantities(collect_predictions(*frames(stress=True)))) == 3
    assert parity_plot(collect_predictions([], []), "none") is None
    structures, results = frames(1)
    assert parity_plot(collect_predictions(structures, results), "one frame") is not None


def test_curves_need_records():
    assert learning_curves([]) is None
    assert learning_curves([{"kind": "train", "epoch": 0, "loss": float("nan")}]) is None
    figure = learning_curves([json.loads(line) for line in metrics_lines()])
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]
    assert titles == ["Loss", "Energy per atom", "Forces", "Learning rate"]


def test_drift_is_the_slope_of_the_total_energy(tmp_path):
    dynamics = read_dynamics(read_run(finished_run(tmp_path / "run")).md_logs["md_nve"])
    drift, residual = dynamics.drift()
    # +1 meV per 0.01 ps for three atoms
    assert drift == pytest.approx(1000 * 0.001 / 0.01 / 3)
    assert residual == pytest.approx(0.0, abs=1e-9)
    assert read_dynamics([{"time_ps": 0.0}]) is None


def test_matplotlib_settings_are_left_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(finished_run(tmp_path / "run"))
    assert dict(matplotlib.rcParams) == before


def test_cells():
    values = [None, float("nan"), 12345, 0.00012345, 12.3456, 123.456, 123456.0, "x", 0.0]
    assert [shown(v) for v in values] == ["–", "–", "12,345", "1.23e-04", "12.3", "123.5", "1.23e+05", "x", "0"]
    page = Page("<t>", "lead")
    page.table(("a",), [])
    assert "<table" not in page.text()
    assert "&lt;t&gt;" in page.text()
