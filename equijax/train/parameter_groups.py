"""Parameters named by regular expressions on their whole path: those that stay as they are, and those that learn
at a rate of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from equijax.errors import EquijaxError, did_you_mean
from equijax.train.config import TrainingConfig

Params = Any


def parameter_path(path: tuple[Any, ...]) -> str:
    """`interactions_0/linear/0e`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_paths(params: Params) -> list[str]:
    """The paths of all parameters, sorted."""
    return sorted(parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


def compiled(pattern: str, key: str) -> re.Pattern[str]:
    """The regular expression `pattern`; EquijaxError that names `key` when it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise EquijaxError(f"{key}: {pattern!r} is not a regular expression ({error})") from error


def no_match(pattern: str, key: str, names: Iterable[str]) -> EquijaxError:
    """The error for an expression that matches no parameter, with paths that it could have meant."""
    known = sorted(names)
    shown = ", ".join(known[:4])
    inside = any(name.startswith(f"{pattern}/") for name in known)
    hint = f"did you mean '{pattern}/.*'?" if inside else did_you_mean(pattern, known)
    return EquijaxError(
        f"{key}: {pattern!r} matches no parameter; expected a regular expression for whole paths such as {shown}"
        + (f"; {hint}" if hint.startswith("did you mean") else "")
    )


def learning_rate_factors(training: TrainingConfig, params: Params) -> dict[str, float]:
    """What the learning rate of each named parameter is multiplied by, 0 where it is frozen; others have 1.

    Raises EquijaxError for an expression that matches nothing, for a parameter that two entries name, and when
    nothing would be left to train.
    """
    names = parameter_paths(params)
    entries = [("training.frozen_parameters", training.frozen_parameters, 0.0)]
    entries += [
        (f"training.learning_rate_groups.{i}", group.parameters, group.factor)
        for i, group in enumerate(training.learning_rate_groups)
    ]
    owner: dict[str, str] = {}
    factors: dict[str, float] = {}
    for key, patterns, factor in entries:
        for pattern in patterns:
            expression = compiled(pattern, key)
            matched = [name for name in names if expression.fullmatch(name)]
            if not matched:
                raise no_match(pattern, key, names)
            for name in matched:
                if owner.setdefault(name, key) != key:
                    raise EquijaxError(f"{key}: {pattern!r} matches {name}, which {owner[name]} names already")
                factors[name] = factor
    if len(factors) == len(names) and not any(factors.values()):
        raise EquijaxError("training.frozen_parameters: matches every parameter, so nothing would be trained")
    return factors


def trained_and_frozen(params: Params, factors: Mapping[str, float]) -> tuple[Params, Params | None]:
    """`params` twice, with None in place of the frozen ones and of the trained ones; (params, None) without frozen.

    jax takes None for a branch without leaves: nothing is computed, stored or updated there.
    """
    if 0.0 not in factors.values():
        return params, None

    def part(frozen: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (factors.get(parameter_path(path)) == 0.0) == frozen else None, params
        )

    return part(False), part(True)


def merged(trained: Params, frozen: Params | None) -> Params:
    """The whole tree again."""
    if frozen is None:
        return trained
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None)


def describe_groups(training: TrainingConfig, params: Params) -> list[str]:
    """Lines for the header of a run: how many parameters are frozen, and what each group trains."""
    factors = learning_rate_factors(training, params)
    sizes = {parameter_path(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    lines = []
    for factor in sorted(set(factors.values())):
        names = [name for name in factors if factors[name] == factor]
        count = f"{sum(sizes[name] for name in names)} of {sum(sizes.values())} parameters"
        shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{count} {'frozen' if factor == 0 else f'with {factor:g} x the learning rate'}: {shown}")
    return lines
