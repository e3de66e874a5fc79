"""Fixtures of the contract suite: `subject` is every row of MODELS in both precisions, `subject64` in float64."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from equijax.models import MODELS

from .subject import Subject, deviation
from .subject import subject as get_subject

HERE = Path(__file__).parent

_MEASURED: dict[tuple[str, str], float] = collections.defaultdict(float)


def _rows(*dtypes: str) -> list:
    """Small cases, then wide ones, which are slow. One worker per model and precision: tests share programs."""
    rows = []
    for width, extra in (("", ()), ("wide-", (pytest.mark.slow,))):
        for name in MODELS:
            for dtype in dtypes:
                marks = (pytest.mark.xdist_group(f"contracts-{name}-{dtype}"), *extra)
                rows.append(pytest.param((name, dtype, bool(extra)), id=f"{name}-{width}{dtype}", marks=marks))
    return rows


# Tests that compile programs of their own, most of the time of the suite: slow for architectures other than MACE and in
# float32. So is all else in float32 but for MACE, and what SLOW names.
COMPILING = {
    "test_batch_invariance",
    "test_blocked_convolution",
    "test_compilations",
    "test_hessian",
    "test_loss_decrease",
    "test_many_edges",
    "test_padding_invariance",
}
# The architectures that take longest to compile keep one test of each kind.
SLOW = {
    "test_training_gradient_at_special_geometries": ("equiformer_v2", "escn", "tdn"),
    "test_training_gradient_of_isolated_atoms_alone": ("equiformer_v2", "escn", "tdn"),
    "test_new_elements": ("equiformer_v2", "escn", "tdn"),
    "test_net_force": ("escn",),
    "test_force_at_the_cutoff": ("equiformer_v2",),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.parent != HERE or "[" not in item.name or item.path.stem == "test_targets":
            continue
        is_mace, is_single = "[mace" in item.name, "float32" in item.name
        test, _, row = item.name.partition("[")
        compiles = item.path.stem in COMPILING or test.startswith("test_hessian")
        if (
            (compiles and (is_single or not is_mace))
            or (is_single and (test.startswith("test_training_gradient") or not is_mace))
            or row.startswith(SLOW.get(test, ()))
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=_rows("float64", "float32"))
def subject(request) -> Subject:
    return get_subject(*request.param)


@pytest.fixture(scope="session", params=_rows("float64"))
def subject64(request) -> Subject:
    return get_subject(*request.param)


@pytest.fixture
def within(request):
    """within(found, expected, tolerance, what, scale=None): assert, and remember the deviation for `-vv`."""
    dtype = "float32" if "float32" in request.node.name else "float64"

    def check(found, expected, tolerance, what, scale=None) -> None:
        value = deviation(found, expected, scale)
        _MEASURED[what, dtype] = max(_MEASURED[what, dtype], value)
        assert value <= tolerance, f"{what}: deviation {value:.2e}, allowed {tolerance:.0e}"

    return check


def pytest_terminal_summary(terminalreporter) -> None:
    if _MEASURED and terminalreporter.config.get_verbosity() > 0:
        terminalreporter.section("measured deviations of the contract suite")
        for (what, dtype), value in sorted(_MEASURED.items()):
            terminalreporter.write_line(f"{what:45s} {dtype:10s} {value:.1e}")
