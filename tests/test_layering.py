"""Rules that hold for every file of the package: imports point one way, nothing unpickles, nothing is global."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "equijax"

# A module may import from the layers before its own, and from its own.
LAYERS = (
    {"errors", "units", "xla_flags", "out_of_memory", "collector"},
    {"precision", "config", "allocator", "compilation_cache"},
    {"structure", "doctor"},
    {"graph", "dispersion"},
    {"datasets"},
    {"irreps"},
    {"orbitals"},
    {"ops"},
    {"nn"},
    {"models"},
    {"potential", "hamiltonians"},
    {"weights"},
    {"report"},
    {"train"},
    {"experiment"},
    {"calculators", "md", "statics", "checks", "deploy"},
    {"boost"},
    {"bench"},
    {"cli"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(ROOT.rglob("*.py"))
WITHOUT_JAX = {"errors", "units", "xla_flags", "out_of_memory", "collector", "config", "allocator", "compilation_cache"}


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules that a file imports anywhere, except for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if node.module == "equijax" else str(node.module), node.lineno) for name in names)
        yield from imports(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = package_of(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in LAYERS"
    for module, line in imports(parsed(path)):
        parts = module.split(".")
        if parts[0] != "equijax" or len(parts) == 1 or parts[1] == "__version__":
            continue
        assert RANK[parts[1]] <= RANK[own], f"{path}:{line}: {own} may not import {parts[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flax_stays_in_nn_and_models_and_jax_out_of_the_config(path):
    own = package_of(path)
    roots = {module.split(".")[0] for module, _ in imports(parsed(path))}
    assert "flax" not in roots or own in ("nn", "models"), f"{path} imports flax"
    assert not (own in WITHOUT_JAX and roots & {"jax", "flax", "optax"}), f"{path} imports jax"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_executes_data_and_nothing_is_set_globally(path):
    source, tree = path.read_text(encoding="utf-8"), parsed(path)
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "runpy"}
    found = {module.split(".")[0] for module, _ in imports(tree)} & forbidden
    assert not found, f"{path} imports {found}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        place = f"{path}:{node.lineno}"
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "compile", "__import__", "execfile", "os.system"), place
        assert called != "jax.config.update", place
        for keyword in node.keywords:
            value = ast.unparse(keyword.value)
            assert keyword.arg != "allow_pickle" or value == "False", place
            assert keyword.arg != "shell" or value == "False", place
            # The one door to pickles: a user converts a mace-torch model, is warned, and gets a safe file.
            is_door = path.relative_to(ROOT).as_posix() == "weights/mace_torch.py"
            assert keyword.arg != "weights_only" or value == "True" or is_door, place
        if called.endswith("import_module"):
            # Only the package's own literal tables name modules, never a file.
            assert path.name == "__init__.py", place
    assert "jax.config.update" not in source, path
    assert "jax_enable_x64" not in source, path


def test_files_are_short_enough_to_read():
    too_long = {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 450}
    assert too_long == {}
