"""A potential that takes more elements than it was trained on, and is unchanged on those that it knew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from equijax.errors import EquijaxError
from equijax.models.species import weights_over_sqrt_species
from equijax.potential.potential import Potential, parameter_shapes, two_atom_graph
from equijax.precision import jit, precision
from equijax.structure import Structure
from equijax.train.parameter_groups import parameter_path
from equijax.weights.model_file import flatten_parameters, nest_parameters


def with_new_elements(
    potential: Potential, begin_as: Mapping[int, int | None], seed: int
) -> tuple[Potential, dict[str, tuple[int, ...]]]:
    """(the potential with more elements, {parameter: shape of what is new in it}).

    `begin_as` maps a new element to the one whose rows of species-dependent parameters it copies, or to None for
    rows drawn anew from the seed. Its E0 is zero until the caller knows better. Raises EquijaxError when the
    architecture cannot take elements over: a parameter whose shape does not grow row by row, or energies of the
    old elements that would change.
    """
    if potential.committee is not None:
        raise EquijaxError("a committee cannot take new elements; expected one model")
    if potential.targets:
        raise EquijaxError(
            f"a model with targets ({', '.join(potential.targets)}) cannot take new elements, whose shifts are not "
            "known; leave these targets out of the experiment, or the elements"
        )
    old = potential.elements
    elements = tuple(sorted({*old, *begin_as}))
    statistics = dataclasses.replace(potential.statistics, atomic_numbers=elements)
    module = potential.model_config.build(statistics)
    with weights_over_sqrt_species() as scaled:
        shapes = _flat(parameter_shapes(module))
    is_drawn = np.array([z not in old and begin_as[z] is None for z in elements])
    # The row of the smaller model for every species of the larger one; a drawn species has none and takes any.
    taken = [old.index(z if z in old else begin_as[z] or old[0]) for z in elements]
    drawn = _flat(_random_parameters(module, seed)) if is_drawn.any() else {}

    params: dict[str, np.ndarray] = {}
    new: dict[str, tuple[int, ...]] = {}
    for path, leaf in flatten_parameters(potential.params).items():
        shape = tuple(shapes[path].shape)
        grown = _species_axes(path, leaf.shape, shape, len(old), len(elements))
        params[path] = leaf
        if not grown:
            continue
        value = leaf[np.ix_(*(taken if axis in grown else range(size) for axis, size in enumerate(shape)))]
        if path.rpartition("/")[0] in scaled:
            value = value * np.asarray(math.sqrt(len(elements) / len(old)), leaf.dtype)
        if drawn:
            rows = np.zeros(shape, bool)
            for axis in grown:
                rows |= is_drawn.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            value = np.where(rows, np.asarray(drawn[path], leaf.dtype), value)
        params[path] = value
        new[path] = tuple(len(begin_as) if axis == grown[0] else size for axis, size in enumerate(shape))
    if not new:
        raise EquijaxError(f"no parameter of this {potential.model_config.name} has a row per element to begin with")
    larger = dataclasses.replace(
        potential,
        statistics=statistics,
        atomic_energies={z: potential.atomic_energies.get(z, 0.0) for z in elements},
        params=nest_parameters(params),
    )
    _refuse_changed_energies(potential, larger, seed)
    return larger, new


def _species_axes(path: str, old: tuple[int, ...], new: tuple[int, ...], before: int, after: int) -> list[int]:
    axes = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if len(old) != len(new) or any((old[i], new[i]) != (before, after) for i in axes):
        raise EquijaxError(
            f"parameter {path} has shape {old} for {before} elements and {new} for {after}, which is not a row per "
            "element: this model cannot take new elements"
        )
    return axes


def _flat(tree: Any) -> dict[str, Any]:
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _random_parameters(module: Any, seed: int) -> Any:
    with precision("float32"):
        init = jit(
            lambda key: module.init(key, *two_atom_graph())["params"],
            compiler_options={"xla_backend_optimization_level": "0"},  # one use
        )
        return jax.device_get(init(jax.random.key(seed)))


def _refuse_changed_energies(potential: Potential, larger: Potential, seed: int) -> None:
    """A module that divides by the number of elements without saying so would change what was learnt."""
    rng = np.random.default_rng(seed)
    old = potential.elements
    grid = 1.3 * np.stack(np.meshgrid(*[range(2)] * 3), axis=-1).reshape(8, 3)
    cluster = Structure(
        atomic_numbers=np.array([old[i % len(old)] for i in range(8)]),
        positions=grid + rng.normal(scale=0.1, size=(8, 3)),
    )
    before, after = (p.predict(cluster, ("energies",), dtype="float64")["energies"] for p in (potential, larger))
    interaction = before - potential.isolated_energies(cluster.atomic_numbers)
    worst = float(np.abs(after - before).max())
    if not worst <= 1e-5 * max(1.0, float(np.abs(interaction).max())):
        raise EquijaxError(
            f"adding elements changes the energies of the others by {worst:.2g} eV per atom: a module of this "
            f"{potential.model_config.name} depends on the number of elements and does not say so (over_sqrt_species)"
        )
