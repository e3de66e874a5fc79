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
# float32. So are gradients at special geometries of the two architectures that take longest to compile, and all else in
# float32 but for MACE.
COMPILING = {
    "test_batch_invariance",
    "test_blocked_convolution",
    "test_compilations",
    "test_hessian",
    "test_loss_decrease",
    "test_many_edges",
    "test_padding_invariance",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.parent != HERE or "[" not in item.name or item.path.stem == "test_targets":
            continue
        is_mace, is_single = "[mace" in item.name, "float32" in item.name
        compiles = item.path.stem in COMPILING or item.name.startswith("test_hessian")
        if item.name.startswith("test_training_gradient_at_special"):
            compiles = is_single or "[equiformer_v2" in item.name or "[escn" in item.name
        if (is_single and (compiles or not is_mace)) or (compiles and not is_mace):
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
