"""Import of torchmd-net checkpoints, without torch: totality, both layouts, refusals, the file that comes out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import equijax
from equijax.cli.convert import app
from equijax.errors import EquijaxError
from equijax.weights.torchmd_net_checkpoint import current_layout, read_torchmd_net
from equijax.weights.torchmd_net_import import convert_torchmd_net
from equijax.weights.torchmd_net_map import to_potential

FIXTURES = Path(__file__).parents[1] / "fixtures" / "torchmd_net"
SMALL = FIXTURES / "o3_1.npz"


@pytest.fixture(scope="module")
def export():
    return read_torchmd_net(SMALL)


def changed(export, state=None, **hyper_parameters):
    return dataclasses.replace(
        export,
        hyper_parameters={**export.hyper_parameters, **hyper_parameters},
        state=export.state if state is None else state,
    )


def leaves(potential):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(potential.params)]


def test_every_key_is_needed(export):
    for key in export.state:
        if key in ("representation_model.distance.box", "prior_model.0.initial_atomref"):
            continue
        with pytest.raises(EquijaxError, match=f"{key} is missing"):
            to_potential(changed(export, {k: v for k, v in export.state.items() if k != key}))


def test_other_keys_shapes_and_values_are_refused(export):
    key = "representation_model.linear.weight"
    with pytest.raises(EquijaxError, match=r"1 entries have no place in our TensorNet: extra"):
        to_potential(changed(export, {**export.state, "extra": np.ones(1)}))
    with pytest.raises(EquijaxError, match=rf"{key} has shape \(7, 24\); expected \(8, 24\)"):
        to_potential(changed(export, {**export.state, key: export.state[key][:-1]}))
    with pytest.raises(EquijaxError, match=f"{key} is not finite"):
        to_potential(changed(export, {**export.state, key: export.state[key] * np.nan}))


def test_the_old_layout(export):
    """Names and order of checkpoints from before the change, made from a new one."""
    state = {}
    for key, value in export.state.items():
        if key.endswith(("linears_scalar.1.weight", "linears_scalar.1.bias")) and "embedding" in key:
            value = value.reshape(3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        if ".layers.0.linears_scalar.2." in key:
            value = value.reshape(3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        state["model." + key.replace("output_network.layers.", "output_network.")] = value
    hyper_parameters = {**export.hyper_parameters, "check_errors": False}
    old = dataclasses.replace(export, hyper_parameters=hyper_parameters, state=current_layout(hyper_parameters, state))
    for one, other in zip(leaves(to_potential(export)), leaves(to_potential(old)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"model": "equivariant-transformer"}, "equivariant-transformer"),
        ({"rbf_type": "gauss"}, "rbf_type 'gauss'"),
        ({"activation": "tanh"}, "activation 'tanh'"),
        ({"cutoff_lower": 1.0}, "cutoff_lower 1.0"),
        ({"output_model": "DipoleMoment"}, "DipoleMoment"),
        ({"reduce_op": "mean"}, "reduce_op 'mean'"),
        ({"precision": 16}, "precision 16"),
        ({"prior_model": ["Atomref", "ZBL"]}, "prior_model is Atomref, ZBL"),
        ({"prior_args": [{"enable": False}]}, "enable: false"),
    ],
)
def test_other_features_are_refused_by_name(export, hyper_parameters, message):
    with pytest.raises(EquijaxError, match="hyper_parameters") as caught:
        to_potential(changed(export, **hyper_parameters))
    assert message in str(caught.value)


def test_elements_units_and_the_mean(export):
    potential = to_potential(export, energy_unit=2.0)
    assert potential.elements == (1, 6, 8)
    assert potential.atomic_energies == {1: -27.2, 6: -2059.0, 8: -4084.0}
    assert potential.statistics.scale == 3.4
    assert to_potential(export, elements=(8, 1)).elements == (1, 8)
    with pytest.raises(EquijaxError, match="atomic number 92 is beyond the tables"):
        to_potential(export, elements=(92,))
    without = {key: value for key, value in export.state.items() if not key.startswith("prior_model")}
    with pytest.raises(EquijaxError, match="--elements"):
        to_potential(changed(export, without, prior_model=None))
    mean = {**export.state, "mean": np.array(-90.0)}
    with pytest.raises(EquijaxError, match="once per molecule"):
        to_potential(changed(export, mean))
    assert to_potential(changed(export, mean), num_atoms=9).atomic_energies[1] == pytest.approx(-13.6 - 10.0)


def test_convert_writes_a_model_that_loads(tmp_path):
    path = tmp_path / "model.safetensors"
    result = CliRunner().invoke(app, ["torchmd-net", str(SMALL), str(path), "--energy-unit", "eV"])
    assert result.exit_code == 0, result.output
    assert "verified on 2 structures against torch" in result.output
    assert "limit: model.envelope cosine" in result.output
    config = equijax.load(path).model_config
    assert (config.envelope, config.isolated_atoms, config.radial_basis) == ("cosine", "learned", "parameters")


def test_a_model_that_torch_disagrees_with_is_not_written(tmp_path):
    with np.load(SMALL) as archive:
        arrays = dict(archive)
    arrays["state/representation_model.out_norm.weight"] *= 1.01
    source, destination = tmp_path / "export.npz", tmp_path / "model.safetensors"
    np.savez(source, **arrays)
    with pytest.raises(EquijaxError, match=r"does not reproduce torch.*nothing was written"):
        convert_torchmd_net(source, destination, "eV")
    assert not destination.exists()


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(EquijaxError, match="no such file"):
        read_torchmd_net(tmp_path / "absent.ckpt")
    with pytest.raises(EquijaxError, match=r"ends in .safetensors"):
        convert_torchmd_net(SMALL, tmp_path / "model.pt", "eV")
    path = tmp_path / "export.npz"
    np.savez(path, config=np.array(json.dumps({"format": "other"})))
    with pytest.raises(EquijaxError, match="format is 'other'"):
        read_torchmd_net(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(EquijaxError, match="cannot be read"):
        read_torchmd_net(path)
