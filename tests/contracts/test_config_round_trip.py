"""A config survives Python and JSON, and is hashable and immutable."""

from __future__ import annotations

import json

import pydantic
import pytest

from equijax.models import MODELS, AnyModelConfig

from .cases import CASES, WIDE_CASES

EVERY_CONFIG = [*CASES.values(), *WIDE_CASES.values()]


@pytest.mark.parametrize("case", EVERY_CONFIG, ids=lambda case: case.config.name)
def test_round_trip(case):
    config = case.config
    model = MODELS[config.name]
    assert model.model_validate(config.model_dump()) == config
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert model.model_validate(json.loads(text)) == config
    assert model.model_validate_json(config.model_dump_json()) == config
    assert pydantic.TypeAdapter(AnyModelConfig).validate_python(json.loads(text)) == config
    assert hash(model.model_validate(json.loads(text))) == hash(config)


@pytest.mark.parametrize("name", MODELS)
def test_defaults_are_a_config(name):
    config = MODELS[name]()
    assert config.name == name
    assert MODELS[name].model_validate(config.model_dump()) == config


@pytest.mark.parametrize("name", MODELS)
def test_immutable_and_strict(name):
    config = MODELS[name]()
    with pytest.raises(pydantic.ValidationError):
        config.cutoff = 3.0
    with pytest.raises(pydantic.ValidationError):
        MODELS[name](cutof=3.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(pydantic.ValidationError):
            MODELS[name](cutoff=wrong)
