"""The feature layout and the strings that name it."""

from __future__ import annotations

import e3nn_jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.errors import EquijaxError
from equijax.irreps.layout import (
    FeatureIrreps,
    degree_slice,
    from_mul_ir,
    irrep_name,
    parse_feature_irreps,
    to_mul_ir,
)


@given(st.integers(1, 5000), st.integers(0, 8))
def test_parse_is_the_inverse_of_str(channels, lmax):
    irreps = FeatureIrreps(channels, lmax)
    assert parse_feature_irreps(str(irreps)) == irreps
    assert parse_feature_irreps(str(irreps).replace("+", " + ")) == irreps
    theirs = e3nn_jax.Irreps(str(irreps))
    assert theirs.dim == irreps.channels * irreps.dim
    assert [str(ir) for _, ir in theirs] == [irrep_name(l) for l in range(lmax + 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the term ''"),
        ("64", "cannot read the term '64'"),
        ("64x0e+64x1e", "term 2 is 1e"),
        ("64x0o", "term 1 is 0o"),
        ("64x1o", "term 1 is 1o"),
        ("64x0e+64x2e", "term 2 is 2e"),
        ("64x0e+32x1o", r"multiplicities are \[64, 32\]"),
        ("0x0e", r"multiplicities are \[0\]"),
        ("-1x0e", "cannot read"),
        ("64x0e+", "cannot read the term ''"),
    ],
)
def test_refused_irreps(text, message):
    with pytest.raises(EquijaxError, match=message):
        parse_feature_irreps(text)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_mul_ir_layout_is_e3nns(channels, lmax, nodes):
    irreps = FeatureIrreps(channels, lmax)
    x = np.random.default_rng(0).normal(size=(nodes, irreps.dim, channels)).astype(np.float32)
    flat = np.asarray(to_mul_ir(x, lmax))
    array = e3nn_jax.IrrepsArray(str(irreps), flat)
    for l, chunk in enumerate(array.chunks):
        np.testing.assert_array_equal(chunk, x[:, degree_slice(l)].swapaxes(1, 2))
    np.testing.assert_array_equal(from_mul_ir(flat, irreps), x)
