"""The same model evaluated otherwise: by other kernels, and with rounded products."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.md.restart import model_digest
from equijax.models.products import with_backend
from equijax.ops import CP, ClebschGordan
from equijax.weights.boost_file import base_digest
from equijax.weights.model_file import load_potential, save_potential
from tests.contracts.structures import methanol
from tests.contracts.subject import subject

KERNELS = ClebschGordan(backend="cuequivariance")

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("cuequivariance_jax") is None, reason="needs the extra cuequivariance"
)
quiet = pytest.mark.filterwarnings("ignore:backend cuequivariance has kernels")


def mace(dtype="float32"):
    return subject("mace", dtype).potential


def on_kernels(potential):
    """Bound to nothing yet, so that the package need not be there."""
    return dataclasses.replace(potential, model_config=with_backend(potential.model_config, "cuequivariance"))


def test_every_product_of_a_config_changes():
    config = mace().model_config
    changed = with_backend(config, "cuequivariance")
    assert (changed.edge_product, changed.node_product) == (KERNELS, KERNELS)
    assert with_backend(changed, "xla") == config
    assert with_backend(config, "xla") is config
    partly = config.model_copy(update={"edge_product": CP()})
    assert with_backend(partly, "cuequivariance").edge_product == CP()


def test_models_without_such_products():
    with pytest.raises(EquijaxError, match="this tensornet has no clebsch_gordan product"):
        subject("tensornet", "float32").potential.with_execution(backend="cuequivariance")


def test_model_files_are_for_every_backend(tmp_path):
    loaded = load_potential(save_potential(on_kernels(mace()), tmp_path / "model.safetensors"))
    assert loaded.model_config == mace().model_config
    assert loaded.matmul_precision == "highest"


@needs_package
@quiet
@pytest.mark.slow
def test_backends_agree():
    plain = mace("float64")
    kernels = plain.with_execution(backend="cuequivariance")
    assert kernels.model_config.edge_product == KERNELS
    one, other = (potential.predict(methanol(), ("energy", "forces")) for potential in (plain, kernels))
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-11 * np.abs(value).max())


def test_identities():
    """A surrogate fits its base whatever evaluates it; a run continues bit for bit only as it began."""
    plain, kernels, coarse = mace(), on_kernels(mace()), dataclasses.replace(mace(), matmul_precision="tf32")
    assert "backend" not in repr(plain.model_config)
    assert base_digest(kernels) == base_digest(plain) == base_digest(coarse)
    assert len({model_digest(p, "float32") for p in (plain, kernels, coarse)}) == 3


def test_unknown_values():
    with pytest.raises(EquijaxError, match="backend is 'cuda'; expected xla or cuequivariance"):
        mace().with_execution(backend="cuda")
    with pytest.raises(EquijaxError, match="matmul_precision is 'fp8'; expected highest, tf32, bf16"):
        mace().with_execution(matmul_precision="fp8")


def test_policies():
    with pytest.warns(EquijaxWarning, match="nothing is faster"):
        coarse = mace().with_execution(matmul_precision="tf32")
    assert coarse.with_execution().matmul_precision == "tf32"
    with pytest.raises(EquijaxError, match="with dtype float64 take highest"):
        coarse.predict(methanol(), ("energy",), dtype="float64")


@pytest.mark.slow
def test_rounded_products_change_little_and_something():
    exact, coarse = mace(), dataclasses.replace(mace(), matmul_precision="tf32")
    one, other = (potential.predict(methanol(), ("energy", "forces")) for potential in (exact, coarse))
    difference = np.abs(one["forces"] - other["forces"]).max() / np.abs(one["forces"]).max()
    assert 1e-5 < difference < 1e-2


def test_exported_programs_are_not_rounded(tmp_path):
    from equijax.deploy.export import export_potential

    coarse = dataclasses.replace(mace(), matmul_precision="bf16")
    with pytest.raises(EquijaxError, match="exported programs take highest"):
        export_potential(coarse, tmp_path / "exported", [])
