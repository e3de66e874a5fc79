"""What a newcomer meets: a fast import, the README's commands, a version that agrees everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Lines of the fenced shell blocks."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]


def test_import_is_fast_and_loads_neither_jax_nor_matplotlib():
    code = (
        "import sys, time; t = time.perf_counter(); import equijax; "
        "print(time.perf_counter() - t, [m for m in ('jax', 'flax', 'ase', 'matplotlib') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, modules = output.split(maxsplit=1)
    assert modules.strip() == "[]"
    assert float(seconds) < 1.0


def test_version_is_the_same_everywhere():
    import equijax

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == equijax.__version__
    assert f"version: {equijax.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{equijax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = {match for line in commands(README) for match in re.findall(r"\bmake ([a-z-]+)", line)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_equijax_commands_of_the_readme_exist():
    import typer

    from equijax.cli.main import app

    known: dict[str, set[str]] = {}
    for name, command in typer.main.get_command(app).commands.items():
        for part, sub in {"": command, **getattr(command, "commands", {})}.items():
            known[f"{name} {part}".strip()] = {option for p in sub.params for option in p.opts}
    used = [line.split() for line in commands(README) if re.match(r"(\.venv/bin/)?equijax ", line)]
    assert len(used) > 5
    for words in used:
        name = " ".join(words[1:3]) if f"{words[1]} {words[2]}" in known else words[1]
        assert name in known, words
        for option in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert option in known[name], f"{option} in {' '.join(words)}"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_local_links_of_the_readme_exist(link):
    if not link.startswith("http"):
        assert (ROOT / link).exists()


def test_the_ci_script_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in commands(README)
    for command in ("make test", "make lint", "make types"):
        assert re.search(rf"^\s*(run )?{command}$", script, flags=re.MULTILINE), command


def test_help_starts_within_a_second():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "equijax.cli.main", "--help"], capture_output=True, check=True)
    # twice the goal: test machines are busy
    assert time.perf_counter() - start < 2.0
