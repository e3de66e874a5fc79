"""With torch: the fixtures can be made again, and whole `.model` files convert."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.weights.mace_torch_export import load_export
from equijax.weights.mace_torch_import import convert_mace_torch, import_mace_torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "mace"


def load_script():
    pytest.importorskip("mace")
    spec = importlib.util.spec_from_file_location("make_mace_fixtures", ROOT / "scripts" / "make_mace_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def names():
    return sorted(path.stem for path in FIXTURES.glob("*.npz"))


@pytest.mark.parametrize("name", names())
def test_torch_computes_the_fixture_again(name):
    """With the stored weights, so that it does not depend on torch's random numbers."""
    script = load_script()
    import torch

    from equijax.weights.mace_torch import export_mace_torch

    stored = load_export(FIXTURES / f"{name}.npz")
    (spec,) = (model for model in script.MODELS if model.name == name)
    module = script.build(spec, seed=99)
    module.load_state_dict({key: torch.tensor(value) for key, value in stored.state.items()})
    again = export_mace_torch(module, script.references())
    assert again.config == stored.config
    for key, batch in stored.references.items():
        np.testing.assert_array_equal(batch.positions, again.references[key].positions)
        for head, outputs in batch.outputs.items():
            for quantity, value in outputs.items():
                found = again.references[key].outputs[head][quantity]
                np.testing.assert_allclose(found, value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_new_model_converts_with_the_default_references(dtype, tmp_path):
    script = load_script()
    import torch

    spec = dataclasses.replace(script.MODELS[-1], dtype=dtype, channels=6, correlation=2)
    path = tmp_path / "random.model"
    torch.save(script.build(spec, seed=5), path)
    with pytest.warns(EquijaxWarning, match="EXECUTES CODE FROM THE FILE"):
        report = convert_mace_torch(path, tmp_path / "model.safetensors")
    assert "verified on 2 structures" in report


def test_unsupported_modules_are_refused_by_name():
    script = load_script()
    import torch
    from mace import modules

    from equijax.weights.mace_torch import export_mace_torch

    with pytest.raises(EquijaxError, match="cannot convert a Linear"):
        export_mace_torch(torch.nn.Linear(2, 2))
    for block in ("RealAgnosticAttResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"):
        script.BLOCKS["other"] = block
        assert block in modules.interaction_classes
        spec = dataclasses.replace(script.MODELS[-1], first="RAR", other="other", dtype="float64")
        with pytest.raises(EquijaxError, match=block):
            import_mace_torch(export_mace_torch(script.build(spec, seed=1)))
