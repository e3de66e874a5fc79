"""Names and shapes of parameters are public: model files and weight maps rely on them.

`python -m tests.contracts.test_golden_parameter_paths` writes the lists; a change is a new format version.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from equijax.models import MODELS
from equijax.potential.potential import parameter_shapes
from equijax.weights.model_file import flatten_parameters

from .cases import CASES, STATISTICS, WIDE_CASES

GOLDEN = Path(__file__).with_name("golden_parameter_paths.json")


def parameter_paths(case):
    shapes = parameter_shapes(case.config.build(STATISTICS))
    import jax

    flat = flatten_parameters(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
    return {path: list(flat[path].shape) for path in sorted(flat)}


def all_paths():
    tables = {name: parameter_paths(case) for name, case in CASES.items()}
    return tables | {f"{name} wide": parameter_paths(case) for name, case in WIDE_CASES.items()}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_paths(name):
    golden = json.loads(GOLDEN.read_text())
    assert parameter_paths(CASES[name]) == golden[name]
    if name in WIDE_CASES:
        assert parameter_paths(WIDE_CASES[name]) == golden[f"{name} wide"]


if __name__ == "__main__":
    tables = {
        table: ",\n".join(f'    "{path}": {json.dumps(shape)}' for path, shape in paths.items())
        for table, paths in all_paths().items()
    }
    body = ",\n".join(f'  "{table}": {{\n{rows}\n  }}' for table, rows in tables.items())
    GOLDEN.write_text("{\n" + body + "\n}\n")
