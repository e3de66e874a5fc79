"""Templates, schema and the experiments that ship with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from equijax.cli.reference import template_text
from equijax.config.yaml import dump_yaml, parse_yaml, validate
from equijax.errors import EquijaxError
from equijax.experiment import ExperimentConfig, json_schema, load_experiment

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def test_there_are_experiments():
    assert {"quickstart", "3bpa_mace", "acac_mace", "acac_mace_cpu", "rmd17_aspirin_mace"} <= {
        path.stem for path in EXPERIMENTS
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid_short_and_explained(path):
    load_experiment(path)
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    assert path.name in (ROOT / "experiments" / "README.md").read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_resolved_configuration_reads_back_to_itself(path):
    experiment = load_experiment(path)
    text = dump_yaml(experiment.model_dump(mode="json"))
    assert validate(ExperimentConfig, *parse_yaml(text, "config.yaml")[:1]) == experiment


def test_published_models_have_the_published_sizes():
    model = load_experiment(ROOT / "experiments" / "acac_mace.yaml").model
    assert (model.hidden_irreps, model.lmax, model.correlation) == ("256x0e+256x1o+256x2e", 3, 3)
    assert (model.first_interaction, model.interaction) == ("residual", "residual")


def test_template_is_valid_and_complete():
    text = template_text("mace")
    data, lines = parse_yaml(text, "template.yaml")
    experiment = validate(ExperimentConfig, data, "template.yaml", lines)
    assert data == experiment.model_dump(mode="json")
    assert "# Radius of the neighbourhood of one layer, Å." in text
    with pytest.raises(EquijaxError, match=r"there is no model 'mac'; did you mean 'mace'\?"):
        template_text("mac")


def test_schema_describes_every_option():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    known = {"seed", "dtype", "matmul_precision", "dataset", "model", "targets", "fine_tuning", "training"}
    assert set(schema["properties"]) == known
    assert "description" in schema["$defs"]["MACEConfig"]["properties"]["cutoff"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.cutof=5", "--set: model.cutof: unknown key 'cutof' of 'mace'; did you mean 'cutoff'?"),
        ("model.name=nequip", "--set: model.name: unknown name 'nequip'; known: "),
        ("model.name=os.system", "--set: model.name: unknown name 'os.system'; known: "),
        ("model.cutoff=-1", "--set: model.cutoff: got -1; expected greater than 0"),
        ("model.hidden_irreps=32x0e+16x1o", "--set: model: hidden_irreps"),
        ("model.hidden_irreps=100000000x0e", "at most 4096"),
        ("model.hidden_irreps=8x0e+8x1o+8x2e+8x3o+8x4e", "raise lmax to 4 or drop the higher irreps"),
        ("model.lmax=99", "--set: model.lmax: got 99; expected less than or equal to 6"),
        ("model.radial_mlp=[64, 1000000000]", "model.radial_mlp.1: got 1000000000; expected less than or equal"),
        ("training.loss.energy.weight=.inf", "training.loss.energy.weight: got inf; expected a finite number"),
        ("training.optimizer.lr=0.1", "unknown key 'lr'; did you mean 'learning_rate'?"),
        ("training.max_epochs=1.5", "training.max_epochs: got 1.5; expected a whole number"),
        ("seed=true", "--set: seed: got True; expected a whole number"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_with_their_place(change, message):
    with pytest.raises(EquijaxError) as error:
        load_experiment(ROOT / "experiments" / "quickstart.yaml", [change])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
