"""`equijax convert fairchem`: every key has its place, and what has none, or is not supported, is refused by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import equijax
from equijax.cli.main import app
from equijax.errors import EquijaxError
from equijax.structure import Structure
from equijax.weights import fairchem_escn
from equijax.weights.fairchem_checkpoint import CONSTANTS, FairchemExport, read_fairchem, with_averages
from equijax.weights.fairchem_equiformer_v2 import to_potential

FIXTURES = Path(__file__).parents[1] / "fixtures" / "equiformer_v2"


def parameter_names(export):
    return [key for key in export.state if not any(re.fullmatch(pattern, key) for pattern, _ in CONSTANTS)]


@pytest.fixture(scope="module")
def published():
    return read_fairchem(FIXTURES / "published.npz")


def changed_backbone(export, **options):
    model = {**export.model, "backbone": {**export.model["backbone"], **options}}
    return dataclasses.replace(export, model=model)


def test_units_elements_and_what_is_left_out(published):
    potential, unused = to_potential(published, [8, 1])
    assert potential.elements == (1, 8)
    assert potential.statistics.scale == pytest.approx(2.8873173)
    assert potential.model_config.structure_shift == pytest.approx(-0.75544506)
    assert potential.model_config.average_atoms == pytest.approx(77.81317)
    assert potential.statistics.avg_num_neighbors == pytest.approx(23.395238876342773)
    table = published.state["backbone.sphere_embedding.weight"]
    np.testing.assert_array_equal(potential.params["node_embedding"]["table"], table[[1, 8]])
    assert all("output_heads" in key for key in unused)


def test_every_parameter_is_needed(published):
    for key in parameter_names(published):
        state = {name: value for name, value in published.state.items() if name != key}
        with pytest.raises(EquijaxError, match=f"{key} is missing"):
            to_potential(dataclasses.replace(published, state=state))


def test_foreign_keys_shapes_and_constants_are_refused(published):
    def refused(message, **entries):
        state = {**published.state, **{key.replace("__", "."): value for key, value in entries.items()}}
        with pytest.raises(EquijaxError, match=message):
            to_potential(dataclasses.replace(published, state=state))

    refused("1 entries have no place in our model: backbone.mystery", backbone__mystery=np.ones(3))
    refused(r"shape \(9, 5\); expected \(9, 6\)", **{"backbone.sphere_embedding.weight": np.ones((9, 5))})
    refused("is not finite", **{"backbone.norm.affine_weight": np.full((3, 6), np.nan)})
    refused("not the constant", **{"backbone.distance_expansion.offset": np.linspace(0, 7, 600)})
    refused("not the constant", **{"backbone.SO3_grid.3.2.to_grid_mat": np.ones((18, 18, 14))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_m_share_rad": True}, "use_m_share_rad"),
        ({"norm_type": "layer_norm"}, "the norm layer_norm"),
        ({"lmax_list": [3, 2]}, "several resolutions"),
        ({"grid_resolution": None}, "grids without a grid_resolution"),
        ({"unheard_of": 1}, "unknown option unheard_of"),
        ({"model": "gemnet"}, "cannot convert the model gemnet"),
    ],
)
def test_unsupported_options_are_refused(published, options, message):
    with pytest.raises(EquijaxError, match=message):
        to_potential(changed_backbone(published, **options))


def test_other_heads_are_refused(published):
    heads = {**published.model["heads"], "stress": {"module": "rank2_symmetric_head"}}
    export = dataclasses.replace(published, model={**published.model, "heads": heads})
    with pytest.raises(EquijaxError, match="head stress: equijax's equiformer_v2 has no rank2_symmetric_head"):
        to_potential(export)


def test_moving_averages_go_by_order(published):
    names = parameter_names(published)
    averaged = with_averages(published.state, [2 * published.state[name] for name in names])
    for name in names:
        np.testing.assert_array_equal(averaged[name], 2 * published.state[name])
    with pytest.raises(EquijaxError, match="do not match"):
        with_averages(published.state, [published.state[name] for name in names[1:]])


def test_command(tmp_path, published):
    output = tmp_path / "model.safetensors"
    command = ["convert", "fairchem", str(FIXTURES / "published.npz"), str(output), "--elements", "H,O"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "every entry of the state dict has its place" in result.output
    assert "structure_shift adds" in result.output
    potential = equijax.load(output)
    assert potential.elements == (1, 8)
    np.testing.assert_array_equal(potential.params["norm"]["scale"], published.state["backbone.norm.affine_weight"])


ESCN = Path(__file__).parents[1] / "fixtures" / "escn" / "l2_m2.npz"


def escn_export():
    """The small eSCN that tests/models/test_escn.py compares with fairchem, as a checkpoint would hold it."""
    with np.load(ESCN) as archive:
        state = {k.removeprefix("weights "): archive[k] for k in archive.files if k.startswith("weights ")}
    options = {"cutoff": 6.0, "max_num_elements": 9, "num_layers": 3, "lmax_list": [2], "mmax_list": [2],
               "sphere_channels": 6, "hidden_channels": 8, "edge_channels": 7, "basis_width_scalar": 2.0,
               "distance_resolution": 0.2, "resolution": 14, "max_neighbors": 20, "otf_graph": True}  # fmt: skip
    unit = {"mean": -0.75, "rmsd": 2.5}
    return FairchemExport({"name": "escn", **options}, {"energy": unit, "forces": {**unit, "mean": 0.0}}, state)


def test_escn_energies_and_forces_are_those_of_fairchem():
    potential, unused = fairchem_escn.to_potential(escn_export())
    assert unused == {}
    with np.load(ESCN) as archive:
        numbers, positions, batch = archive["atomic_numbers"], archive["positions"], archive["batch"]
        energies, forces = archive["energy"], archive["forces"]
    structures = [Structure(numbers[batch == g], positions[batch == g].astype(float)) for g in (0, 1)]
    found = potential.predict(structures, ("energy", "forces"), dtype="float64")
    # The rotations about the edges are others than in fairchem, where they are random; the grid makes that matter.
    np.testing.assert_allclose([r["energy"] for r in found], 2.5 * energies - 0.75, rtol=1e-4)
    ours = np.concatenate([r["forces"] for r in found])
    np.testing.assert_allclose(ours, 2.5 * forces, atol=1e-3 * np.abs(2.5 * forces).max())


def test_every_key_of_escn_is_needed():
    export = escn_export()
    for key in parameter_names(export):
        state = {name: value for name, value in export.state.items() if name != key}
        with pytest.raises(EquijaxError, match=f"{key} is missing"):
            fairchem_escn.to_potential(dataclasses.replace(export, state=state))
