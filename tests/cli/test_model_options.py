"""Every row of MODELS at the command line: its template, its schema, and what is said about mistakes in its options."""

from __future__ import annotations

import json

import pytest

from equijax.cli import main as cli
from equijax.config.yaml import parse_yaml, validate
from equijax.experiment import ExperimentConfig
from equijax.models import HAMILTONIAN_MODELS, MODELS


@pytest.fixture
def template(capsys):
    """template(NAME): what `equijax template NAME` prints."""

    def text_of(name: str) -> str:
        assert cli.run(["template", name]) == 0
        return capsys.readouterr().out

    return text_of


def refused(capsys, path, text: str) -> str:
    """The one line that `equijax check` says about an experiment file with this text."""
    path.write_text(text)
    assert cli.run(["check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").strip()


def line_of(text: str, start: str) -> int:
    """Number of the first line that begins so."""
    return next(n for n, line in enumerate(text.splitlines(), start=1) if line.startswith(start))


@pytest.mark.parametrize("name", MODELS)
def test_template_is_complete_commented_and_valid(template, name):
    text = template(name)
    data, lines = parse_yaml(text, "template.yaml")
    experiment = validate(ExperimentConfig, data, "template.yaml", lines)
    assert experiment.model == MODELS[name]()
    assert data == experiment.model_dump(mode="json")
    rows = text.splitlines()
    for field in MODELS[name].model_fields:
        number = lines["model", field]
        described = rows[number - 2].lstrip().startswith("#")
        # The description of a field that holds a record may be that of the record.
        assert described or field == "name", f"{name}: {rows[number - 1]}"


@pytest.mark.parametrize("name", MODELS)
def test_unknown_key_is_told_for_this_model(template, capsys, tmp_path, name):
    text = template(name).replace(f"  name: {name}\n", f"  name: {name}\n  cutof: 5.0\n", 1)
    path = tmp_path / "run.yaml"
    place = f"{path}:{line_of(text, '  cutof:')}"
    message = refused(capsys, path, text)
    assert message == f"{place}: model.cutof: unknown key 'cutof' of '{name}'; did you mean 'cutoff'?"


@pytest.mark.parametrize("name", MODELS)
def test_unknown_model_suggests_the_nearest(template, capsys, tmp_path, name):
    text = template(name).replace(f"  name: {name}\n", f"  name: {name}e\n", 1)
    path = tmp_path / "run.yaml"
    message = refused(capsys, path, text)
    place = f"{path}:{line_of(text, f'  name: {name}e')}"
    assert message == f"{place}: model.name: unknown name '{name}e'; did you mean '{name}'?"


@pytest.mark.parametrize("name", MODELS)
def test_impossible_value_names_key_and_line(template, capsys, tmp_path, name):
    text = template(name)
    number = line_of(text, "  cutoff:")
    rows = text.splitlines()
    rows[number - 1] = "  cutoff: -1"
    path = tmp_path / "run.yaml"
    message = refused(capsys, path, "\n".join(rows) + "\n")
    assert message == f"{path}:{number}: model.cutoff: got -1; expected greater than 0"


def test_key_of_another_model_says_whose_it_is(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    message = refused(capsys, path, "dataset: {train: a.xyz}\nmodel:\n  name: tdn\n  hidden_irreps: 32x0e\n")
    assert message.startswith(
        f"{path}:4: model.hidden_irreps: unknown key 'hidden_irreps' of 'tdn', it belongs to mace; "
    )


def test_template_of_an_unknown_model(capsys):
    assert cli.run(["template", "mcae"]) == 2
    assert capsys.readouterr().err == "error: there is no model 'mcae'; did you mean 'mace'?\n"


def test_schema_knows_every_model(capsys):
    assert cli.run(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    (union,) = (part for part in _parts(schema["properties"]["model"]) if "discriminator" in part)
    known = MODELS | HAMILTONIAN_MODELS
    assert set(union["discriminator"]["mapping"]) == set(known)
    for name, config in known.items():
        fields = schema["$defs"][config.__name__]["properties"]
        assert fields["name"]["const"] == name
        for key, field in fields.items():
            assert key == "name" or "description" in field, f"{name}.{key}"


def _parts(entry: dict) -> list[dict]:
    return [entry, *entry.get("anyOf", [])]
