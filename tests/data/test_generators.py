"""The generators of the embedded data: fixed job lists, resumable job files, the same data files again."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.io
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SETS = ("ethanol", "water", "mixed", "tensors")


@pytest.fixture
def trajectories(generators):
    return {
        "ethanol": generators.ethanol.SPLITS,
        "water": generators.hamiltonians.SETS["water"],
        "mixed": generators.hamiltonians.SETS["mixed"],
        "tensors": generators.tensors.TRAJECTORIES,
    }


@pytest.fixture
def short(generators, tmp_path):
    """A trajectory of five frames that is sampled already."""
    positions = np.arange(30.0).reshape(5, 2, 3)
    generators.sampling.save_frames(tmp_path, "train", np.array([8, 1]), positions)
    return generators.sampling.Trajectory("train", "train", "OH", 300, 5, 2, 7)


def test_scripts_import_nothing_heavy():
    script = "import sys, generate_ethanol, generate_hamiltonians, generate_tensors, generate_elastic\n"
    script += "assert not {'pyscf', 'tblite', 'ase', 'scipy', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=DATA, check=True)


@pytest.mark.parametrize("name", SETS)
def test_job_list_covers_everything_once_and_starts_with_the_lite_subset(generators, trajectories, name):
    own = trajectories[name]
    jobs = generators.sampling.job_list(own)
    assert len(set(jobs)) == len(jobs) == sum(t.full for t in own)
    assert len({t.name for t in own}) == len({t.seed for t in own}) == len(own)
    lite = sum(t.lite for t in own)
    assert set(jobs[:lite]) == {(t.name, i) for t in own for i in range(t.lite)}
    for t in own:  # frames come in order, so that what is done forms a prefix
        assert [i for name, i in jobs if name == t.name] == list(range(t.full))


def test_every_beginning_of_the_job_list_is_balanced(generators, trajectories):
    own = trajectories["tensors"]
    jobs = generators.sampling.job_list(own)
    for count in range(0, sum(t.lite for t in own), 97):
        for t in own:
            share = count * t.lite / sum(t.lite for t in own)
            assert abs(sum(name == t.name for name, _ in jobs[:count]) - share) <= 1.0


def test_job_file_drops_only_a_truncated_last_line(generators, tmp_path):
    path, read = tmp_path / "labels.jsonl", generators.sampling.read_records
    assert read(path) == ({}, 0)
    records = [{"trajectory": "train", "frame": i, "energy": -1.5 * i} for i in range(3)]
    lines = [json.dumps(r).encode() + b"\n" for r in records]
    path.write_bytes(b"".join(lines))
    expected = {("train", i): record for i, record in enumerate(records)}
    assert read(path) == (expected, len(b"".join(lines)))

    del expected["train", 2]
    for kept in range(len(lines[2])):
        path.write_bytes(lines[0] + lines[1] + lines[2][:kept])
        assert read(path) == (expected, len(lines[0] + lines[1]))

    path.write_bytes(lines[0] + lines[1][:10] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="damaged"):
        read(path)


def test_a_stopped_run_continues_with_what_is_missing(generators, tmp_path, short, capsys):
    """The labeller fails at the third frame; after that, and after a torn last line, only the rest is computed."""
    positions = generators.sampling.load_frames(tmp_path, "train")[1]
    jobs, calls, failing = generators.sampling.job_list([short]), [], {2}

    def label(numbers, x):
        calls.append(int(x[0, 0]) // 6)
        if calls[-1] in failing:
            raise KeyboardInterrupt
        return {"energy": float(x.sum())}

    with pytest.raises(KeyboardInterrupt), ThreadPoolExecutor(1) as pool:
        generators.sampling.run(tmp_path, pool, [short], jobs, label)
    assert calls[:3] == [0, 1, 2]
    kept, _ = generators.sampling.read_records(tmp_path / "labels.jsonl")
    with open(tmp_path / "labels.jsonl", "ab") as stream:
        stream.write(b'{"trajectory": "tra')

    calls.clear()
    failing.clear()
    with ThreadPoolExecutor(1) as pool:
        generators.sampling.run(tmp_path, pool, [short], jobs, label)
    assert calls == [i for i in range(5) if ("train", i) not in kept]
    records, intact = generators.sampling.read_records(tmp_path / "labels.jsonl")
    assert intact == (tmp_path / "labels.jsonl").stat().st_size
    assert [records["train", i]["energy"] for i in range(5)] == [x.sum() for x in positions]
    capsys.readouterr()


def test_a_work_folder_has_one_writer_and_one_setting(generators, tmp_path, monkeypatch):
    monkeypatch.setattr(generators.sampling, "version", lambda name: "1")
    claimed = generators.sampling.claimed
    with (
        claimed(tmp_path, {"basis": "a"}),
        pytest.raises(SystemExit, match="in use"),
        claimed(tmp_path, {"basis": "a"}),
    ):
        pass
    with pytest.raises(SystemExit, match="differs"), claimed(tmp_path, {"basis": "b"}):
        pass


def test_only_the_contiguous_converged_prefix_is_written(generators, tmp_path, short):
    """Frame 1 did not converge, frame 3 is missing: the file holds frames 0 and 2."""
    positions = generators.sampling.load_frames(tmp_path, "train")[1]
    values = {"energy": -7.0, "forces": np.ones((2, 3)).tolist(), "dipole": [0.0, 0.5, 1.0]}
    records = {}
    for i in (0, 1, 2, 4):
        digest = generators.sampling.digest(positions[i])
        record = {"trajectory": "train", "frame": i, "digest": digest, "converged": i != 1}
        records["train", i] = record | (values if i != 1 else {})
    row = generators.ethanol.write_split(tmp_path, tmp_path, short, records, {"O": -4.0, "H": -1.0})
    assert (row["frames"], row["scf_failures"]) == (2, 1)
    written = ase.io.read(tmp_path / "train.xyz", ":")
    assert [a.info["frame"] for a in written] == [0, 2]
    np.testing.assert_allclose(written[1].positions, positions[2])
    np.testing.assert_allclose(written[1].get_dipole_moment(), values["dipole"])

    records["train", 0]["digest"] = "another geometry"
    with pytest.raises(RuntimeError, match="other geometries"):
        generators.ethanol.write_split(tmp_path, tmp_path, short, records, {"O": -4.0, "H": -1.0})


@pytest.mark.parametrize("name", SETS)
def test_a_new_work_folder_starts_from_the_shipped_files(generators, tmp_path, name, capsys):
    """Taken over and written again, they are the same: files, card and all."""
    module = getattr(generators, "hamiltonians" if name in ("water", "mixed") else name)
    family = (name,) if name in ("water", "mixed") else ()
    shipped, prefix = (DATA / "hamiltonians", f"{name}_") if family else (DATA / name, "")
    card = json.loads((shipped / f"{prefix}card.json").read_text(encoding="utf-8"))
    assert card["settings"] == module.SETTINGS
    made_with = {key: card[key] for key in ("settings", "software")}
    (tmp_path / "settings.json").write_text(json.dumps(made_with), encoding="utf-8")
    module.adopt_files(tmp_path, shipped, *family)
    again = module.finish(tmp_path, tmp_path / "again", *family)
    for split in card["splits"]:
        if not family:
            assert (tmp_path / "again" / f"{split}.xyz").read_bytes() == (shipped / f"{split}.xyz").read_bytes()
            continue
        with (
            np.load(tmp_path / "again" / f"{prefix}{split}.npz") as new,
            np.load(shipped / f"{prefix}{split}.npz") as old,
        ):
            assert list(new) == list(old)
            for key in old:
                np.testing.assert_array_equal(new[key], old[key])
            again["splits"][split]["sha256"] = card["splits"][split]["sha256"]  # depends on the zlib release
    assert again == card
    capsys.readouterr()
