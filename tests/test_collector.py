"""The garbage collector stands still where a model is traced, and runs again afterwards."""

from __future__ import annotations

import gc

import pytest

from equijax.collector import collector_paused


def fails_inside_two_pauses() -> None:
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError


def test_it_is_as_it_was_also_after_an_error():
    assert gc.isenabled()
    with pytest.raises(KeyError):
        fails_inside_two_pauses()
    assert gc.isenabled()
