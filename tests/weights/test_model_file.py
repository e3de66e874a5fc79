"""The model file: exact round trips, and a clear refusal of everything else."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from safetensors.numpy import save

import equijax.models
from equijax.errors import EquijaxError
from equijax.weights import model_file
from equijax.weights.model_file import flatten_parameters, load_potential, save_potential
from tests.toy_model import ToyConfig, toy_potential


@pytest.fixture(autouse=True)
def _toy_is_an_architecture(monkeypatch):
    monkeypatch.setitem(equijax.models.MODELS, "toy", ToyConfig)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_potential(toy_potential(), tmp_path / "model.safetensors")


def parts(path: Path) -> tuple[dict, dict]:
    """Description and tensors of a valid file, to write changed ones from."""
    potential = load_potential(path)
    return model_file.describe(potential), flatten_parameters(potential.params)


def write(path: Path, description: dict, tensors: dict) -> Path:
    """A file with a right checksum, whatever its content."""
    text = json.dumps(description)
    path.write_bytes(save(tensors, {"equijax_model": text, "sha256": model_file.digest(text, tensors)}))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(tmp_path, dtype):
    original = dataclasses.replace(toy_potential(dtype=dtype), metadata={"energy_mae": 0.1 + 0.2})
    loaded = load_potential(save_potential(original, tmp_path / "new" / "model.safetensors"))
    assert loaded.model_config == original.model_config
    assert loaded.statistics == original.statistics
    assert loaded.atomic_energies == original.atomic_energies
    assert loaded.dtype == dtype
    assert loaded.metadata == original.metadata
    for name, tensor in flatten_parameters(original.params).items():
        other = flatten_parameters(loaded.params)[name]
        assert other.dtype == tensor.dtype
        np.testing.assert_array_equal(other, tensor)
    atoms = molecule("CH3CH2OH")
    assert loaded.predict(atoms)["energy"] == original.predict(atoms)["energy"]


def test_equijax_load_reads_it(saved):
    assert equijax.load(str(saved)).elements == (1, 6, 8)


def test_metadata_is_readable_without_equijax(saved):
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description = json.loads(header["__metadata__"]["equijax_model"])
    assert description["format_version"] == 1
    assert description["elements"] == ["H", "C", "O"]
    assert description["units"] == {"energy": "eV", "length": "angstrom"}
    assert description["model"] == {"name": "toy", "cutoff": 4.0, "channels": 4}


def test_every_flipped_bit_and_truncation_is_found(saved):
    content = saved.read_bytes()
    rng = np.random.Generator(np.random.Philox(0))
    for position in rng.integers(0, len(content), size=150):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        with pytest.raises(EquijaxError, match=r"model.safetensors"):
            load_potential(saved)
    for length in rng.integers(0, len(content), size=50):
        saved.write_bytes(content[:length])
        with pytest.raises(EquijaxError, match=r"model.safetensors"):
            load_potential(saved)


def test_missing_file_and_wrong_suffix(tmp_path, saved):
    with pytest.raises(EquijaxError, match="there is no such model file"):
        load_potential(tmp_path / "absent.safetensors")
    with pytest.raises(EquijaxError, match=r"has the suffix '.bin'"):
        load_potential(saved.rename(tmp_path / "model.bin"))
    with pytest.raises(EquijaxError, match=r"expected a name ending in .safetensors"):
        save_potential(toy_potential(), tmp_path / "model.npz")


def test_safetensors_of_another_program(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"a": np.ones(3)}))
    with pytest.raises(EquijaxError, match="is a safetensors file but not an equijax model"):
        load_potential(path)


def test_absurd_headers_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(EquijaxError, match="truncated or not a safetensors file"):
        load_potential(path)
    with open(path, "wb") as stream:  # sparse: 20 MB that take no space
        stream.write((11_000_000).to_bytes(8, "little") + b"{")
        stream.truncate(20_000_000)
    with pytest.raises(EquijaxError, match="header of 11000000 bytes; the limit is 10000000"):
        load_potential(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32"},
        "text",
    ],
)
def test_wrong_tensor_entries_are_refused(tmp_path, entry):
    header = json.dumps({"__metadata__": {"equijax_model": "{}", "sha256": ""}, "a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(EquijaxError, match=r"damaged|has type"):
        load_potential(path)


def test_a_billion_channels_are_refused_before_anything_is_built(saved, monkeypatch):
    description, tensors = parts(saved)
    monkeypatch.setattr(ToyConfig, "build", lambda *_: pytest.fail("the model was built"))
    description["model"]["channels"] = 10**9
    with pytest.raises(EquijaxError, match=r"model.channels: holds 1000000000; the limit is 100000"):
        load_potential(write(saved, description, tensors))
    description["model"] = {"name": "mace", "hidden_irreps": "1000000000x0e"}
    with pytest.raises(EquijaxError, match=r"model.hidden_irreps: holds 1000000000"):
        load_potential(write(saved, description, tensors))
    description["model"] = {"name": "mace", "radial_mlp": [64, 10**7]}
    with pytest.raises(EquijaxError, match=r"model.radial_mlp: holds 10000000"):
        load_potential(write(saved, description, tensors))


def test_only_names_in_the_table_are_architectures(saved):
    description, tensors = parts(saved)
    for name, message in [("os.system", "not an architecture"), ("mac", "did you mean 'mace'"), (None, "None")]:
        description["model"] = {"name": name}
        with pytest.raises(EquijaxError, match=message):
            load_potential(write(saved, description, tensors))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 99, "format_version: is 99; this equijax reads versions up to 1; install a newer"),
        ("format_version", "1", "format_version: is '1'; expected a positive integer"),
        ("units", {"energy": "kcal/mol", "length": "angstrom"}, "units: is .*kcal"),
        ("cutoff", 5.0, "cutoff: is 5.0, the model has 4.0"),
        ("elements", ["H", "C"], "parameter embedding has shape"),
        ("elements", ["H", "C", "Xx"], "KeyError"),
        ("atomic_energies", {"H": 1.0, "C": 2.0}, "atomic energies are missing"),
        ("dtype", "float16", "dtype is 'float16'"),
        ("statistics", {"avg_num_neighbors": 1.0, "other": 2.0}, "expected a complete description"),
        ("model", {"name": "toy", "channels": 3}, "parameter embedding has shape .3, 4.; expected .3, 3."),
        ("model", {"name": "toy", "chanels": 4}, "model.chanels: Extra inputs"),
    ],
)
def test_wrong_descriptions_are_refused(saved, key, value, message):
    description, tensors = parts(saved)
    with pytest.raises(EquijaxError, match=message):
        load_potential(write(saved, {**description, key: value}, tensors))


def test_parameters_that_are_not_finite_are_neither_written_nor_read(saved):
    description, tensors = parts(saved)
    tensors["readout"] = np.full_like(tensors["readout"], np.nan)
    with pytest.raises(EquijaxError, match="readout: is not finite"):
        load_potential(write(saved, description, tensors))
    before = saved.read_bytes()
    broken = toy_potential()
    broken.params["readout"][0] = np.inf
    with pytest.raises(EquijaxError, match="readout: is not finite, so the model is not written"):
        save_potential(broken, saved)
    assert saved.read_bytes() == before


def test_older_formats_are_upgraded(saved, monkeypatch):
    description, tensors = parts(saved)
    monkeypatch.setattr(model_file, "FORMAT_VERSION", 2)
    renamed = {**description, "r_max": description.pop("cutoff"), "format_version": 1}
    del renamed["cutoff"]
    monkeypatch.setitem(model_file.UPGRADES, 1, lambda old: {**old, "cutoff": old["r_max"], "format_version": 2})
    assert load_potential(write(saved, renamed, tensors)).cutoff == 4.0


WRITER = """
import sys
import equijax.weights.atomic_file as files
from pathlib import Path
path = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    files.write_atomically(path, (b"%08d" % number) * 200_000)
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "model.safetensors"
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05 + 0.03 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if path.exists():
            content = path.read_bytes()
            assert content == content[:8] * 200_000
    from equijax.weights.atomic_file import write_atomically

    write_atomically(path, b"done")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EquijaxError, match="cannot be written"):
        save_potential(toy_potential(), tmp_path / "file" / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(EquijaxError, match="is a directory"):
        save_potential(toy_potential(), tmp_path / "folder.safetensors")
