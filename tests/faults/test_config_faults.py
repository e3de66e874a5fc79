"""Mistakes in configuration files: each is refused with one line that names the place and the fix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest

from equijax.config import StrictModel, load_yaml, validate
from equijax.config.yaml import apply_overrides, parse_yaml
from equijax.errors import EquijaxError


class Adam(StrictModel):
    name: Literal["adam"] = "adam"
    learning_rate: float = pydantic.Field(0.01, gt=0)
    amsgrad: bool = True


class Sgd(StrictModel):
    name: Literal["sgd"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9


class Run(StrictModel):
    seed: int = 0
    elements: tuple[str, ...] = ()
    widths: tuple[int, ...] = (64, 64)
    energies: dict[str, float] = pydantic.Field(default_factory=dict)
    optimizer: Annotated[Adam | Sgd, pydantic.Field(discriminator="name")] = Adam()
    valid: Path | tuple[Path, ...] | None = None


def read(text: str) -> Run:
    data, lines = parse_yaml(text, "run.yaml")
    return validate(Run, data, "run.yaml", lines)


def refused(text: str) -> str:
    with pytest.raises(EquijaxError) as error:
        read(text)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_misspelt_key_is_refused_with_line_and_suggestion():
    text = "seed: 1\noptimizer:\n  name: adam\n  lrr: 0.1\n"
    expected = "run.yaml:4: optimizer.lrr: unknown key 'lrr' of 'adam'; did you mean 'learning_rate'?"
    assert refused(text) == expected
    assert refused("sed: 1\n") == "run.yaml:1: sed: unknown key 'sed'; did you mean 'seed'?"


def test_unknown_key_lists_the_known_ones_of_the_chosen_union_member():
    message = refused("optimizer:\n  name: sgd\n  zzz: 0.1\n")
    assert message == "run.yaml:3: optimizer.zzz: unknown key 'zzz' of 'sgd'; known: learning_rate, momentum, name"


def test_key_of_another_union_member_is_named_as_such():
    message = refused("optimizer:\n  name: sgd\n  amsgrad: true\n")
    assert message.startswith(
        "run.yaml:3: optimizer.amsgrad: unknown key 'amsgrad' of 'sgd', it belongs to adam; known"
    )


def test_unknown_word_is_compared_with_words_where_numbers_are_possible_too():
    class Size(StrictModel):
        rank: int | Literal["exact", "full"] = "exact"

    with pytest.raises(EquijaxError) as error:
        validate(Size, {"rank": "exakt"}, "run.yaml")
    assert str(error.value) == "run.yaml: rank: got 'exakt'; expected 'exact' or 'full'; did you mean 'exact'?"


def test_several_mistakes_are_counted():
    assert refused("sed: 1\nfoo: 2\n").endswith("(1 more after this one)")


def test_unknown_union_member_is_named():
    message = refused("optimizer:\n  name: adamm\n")
    assert message == "run.yaml:2: optimizer.name: unknown name 'adamm'; did you mean 'adam'?"
    assert "needs the key 'name'" in refused("optimizer: {momentum: 0.1}\n")


def test_duplicate_key_is_refused():
    message = refused("seed: 1\noptimizer:\n  name: adam\n  name: sgd\n")
    assert message == "run.yaml:4: optimizer.name: duplicate key, first given on line 3"


def test_nobelium_stays_text():
    assert read("elements: [N, O, No]\nenergies: {No: -1.5, n: -1}\n").elements == ("N", "O", "No")
    assert read("energies: {No: -1.5}\n").energies == {"No": -1.5}


def test_yaml_1_2_numbers():
    data, _ = parse_yaml("a: 1e-3\nb: 010\nc: 12:30:45\nd: 0o10\ne: yes\nf: 2020-01-01\n", "run.yaml")
    assert data == {"a": 1e-3, "b": 10, "c": "12:30:45", "d": 8, "e": "yes", "f": "2020-01-01"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: .nan", "got nan; expected a finite number"),
        ("learning_rate: .inf", "got inf; expected a finite number"),
        ("learning_rate: -1", "got -1; expected greater than 0"),
        ("learning_rate: true", "got True; expected a number"),
        ("learning_rate: '0.1'", "got '0.1'; expected a number"),
        ("amsgrad: 1", "got 1; expected true or false"),
        ("amsgrad: yes", "got 'yes'; expected true or false"),
    ],
)
def test_numbers_are_numbers(text, message):
    key = text.split(":")[0]
    refusal = refused(f"optimizer:\n  name: adam\n  {text}\n")
    assert refusal == f"run.yaml:3: optimizer.{key}: {message}"


def test_scalars_inside_lists_and_mappings_are_checked_too():
    assert "widths.1: got True; expected a whole number" in refused("widths: [64, true]\n")
    assert "energies.H: got '-1'; expected a number" in refused("energies: {H: '-1'}\n")
    assert "seed: got 1.5; expected a whole number" in refused("seed: 1.5\n")
    assert "valid" in refused("valid: 3\n")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch canary']", "!foo 1", "!!binary aGk="])
def test_tags_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(f"seed: {text}\n")
    assert message.startswith("run.yaml:1: seed: the tag ")
    assert "is not allowed; expected plain values" in message
    assert not (tmp_path / "canary").exists()


def test_alias_bomb_is_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    start = time.perf_counter()
    message = refused("\n".join(lines) + "\n")
    assert time.perf_counter() - start < 2
    assert "nodes; expected at most 100,000" in message


def test_an_alias_to_itself_is_refused():
    assert "alias to itself" in refused("elements: &a [x, *a]\n")


def test_ordinary_aliases_work():
    data, _ = parse_yaml("a: &x {k: 1}\nb: *x\n", "run.yaml")
    assert data == {"a": {"k": 1}, "b": {"k": 1}}
    assert "merge keys" in refused("a: &x {k: 1}\nb: {<<: *x}\n")


def test_files_that_are_too_large_missing_binary_or_empty(tmp_path):
    cases = {
        "large.yaml": (b"#" * 1_000_001, "is 1,000,001 bytes long; expected at most 1,000,000 bytes"),
        "binary.yaml": (b"\xff\xfe\x00\x01", "is not text; expected a YAML file in UTF-8"),
        "empty.yaml": (b"\n# nothing\n", "is empty; expected a YAML mapping"),
        "list.yaml": (b"- 1\n", "is not a mapping"),
        "broken.yaml": (b"a: [1\n", "is not valid YAML"),
        "tab.yaml": (b"a:\n\t- b\n", "is not valid YAML"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(EquijaxError, match=message):
            load_yaml(path)
    with pytest.raises(EquijaxError, match=r"nothing\.yaml: cannot be read \(No such file or directory\)"):
        load_yaml(tmp_path / "nothing.yaml")


def test_deep_nesting_is_refused():
    message = refused("a: " + "[" * 5000 + "]" * 5000)
    assert "nested too deeply" in message


def test_overrides_are_applied_and_blamed():
    data, lines = parse_yaml("optimizer: {name: adam}\nwidths: [1, 2]\n", "run.yaml")
    new, new_lines = apply_overrides(data, lines, ["optimizer.learning_rate=1e-3", "widths.1=7", "seed=3"])
    run = validate(Run, new, "run.yaml", new_lines)
    assert (run.optimizer.learning_rate, run.widths, run.seed) == (1e-3, (1, 7), 3)
    assert data["widths"] == [1, 2]
    bad, bad_lines = apply_overrides(data, lines, ["optimizer.learning_rat=1"])
    with pytest.raises(
        EquijaxError, match=r"^--set: optimizer.learning_rat: unknown key .*did you mean 'learning_rate'"
    ):
        validate(Run, bad, "run.yaml", bad_lines)
    for broken in ("seed", "=1", "a..b=1"):
        with pytest.raises(EquijaxError, match=r"expected KEY\.PATH=VALUE"):
            apply_overrides(data, lines, [broken])
    with pytest.raises(EquijaxError, match=r"widths\.9: does not exist"):
        apply_overrides(data, lines, ["widths.9=1"])


def test_values_from_the_environment_are_never_expanded(monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    assert read("elements: ['${SECRET}', $SECRET]\n").elements == ("${SECRET}", "$SECRET")
