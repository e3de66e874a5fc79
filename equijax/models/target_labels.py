"""Labels of tensor targets: from the numbers of a file to irreps, and refused when they are not such a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.cartesian import CartesianTensor
from equijax.irreps.voigt import from_voigt_matrix, from_voigt_vector

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig

MISFIT = 1e-4
"""Largest element that the symmetry of a target does not allow, relative to the largest element of the tensor."""


def target_readers(targets: Mapping[str, TargetConfig]) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """What reads the label of each target: (numbers of the file, number of atoms) -> irreps [dim], [N, dim] for a
    target per atom, [N, N, dim] for one per pair. Raises EquijaxError for numbers that are not such a label."""
    return {name: partial(irreps_label, config) for name, config in targets.items()}


def irreps_label(config: TargetConfig, numbers: np.ndarray, num_atoms: int) -> np.ndarray:
    """The label as irreps, float64; see `target_readers`."""
    rows = {"system": (), "atom": (num_atoms,), "pair": (num_atoms, num_atoms)}[config.per]
    fitting = {name: shape for name, shape in readings(config).items() if _may_be(numbers.shape, rows, shape)}
    if len(fitting) != 1:
        raise _unreadable(config, numbers, rows, fitting)
    ((reading, shape),) = fitting.items()
    values = np.asarray(numbers, np.float64).reshape(*rows, *shape)
    if reading == "irreps":
        return values
    if reading == "voigt":
        values = from_voigt_matrix(values) if shape == (6, 6) else from_voigt_vector(values)
    assert config.cartesian is not None
    return _symmetric(config.cartesian, values)


def cartesian_value(config: TargetConfig, components: np.ndarray) -> np.ndarray:
    """What a user gets for irreps [..., dim]: the Cartesian tensor [..., 3, 3, ...], a scalar without an axis, or the
    irreps where there is no Cartesian form."""
    if config.cartesian is not None:
        return np.asarray(config.cartesian.to_cartesian(components))
    return components[..., 0] if components.shape[-1] == 1 else components


def readings(config: TargetConfig) -> dict[str, tuple[int, ...]]:
    """{how a label of one row may be written: its shape}; only the one that the config names, if it does.

    Components of a vector are its irreps: x, y, z.
    """
    tensor, dim = config.cartesian, config.components.dim
    found: dict[str, tuple[int, ...]] = {}
    if tensor is not None:
        found["cartesian"] = tensor.shape
        if tensor.rank == 2 and tensor.is_fully_symmetric:
            found["voigt"] = (6,)
        if tensor.rank == 4 and has_minor_symmetry(tensor):
            found["voigt"] = (6, 6)
    if tensor is None or tensor.rank > 1:
        found["irreps"] = (dim,)
    if config.label is None:
        return found
    if config.label not in found:
        raise EquijaxError(f"label: {config.label} is not a way to write this target; expected {' or '.join(found)}")
    return {config.label: found[config.label]}


def has_minor_symmetry(tensor: CartesianTensor) -> bool:
    """ijkl = jikl = ijlk, for a tensor of rank 4."""
    basis = tensor.basis
    return np.allclose(basis, basis.swapaxes(1, 2)) and np.allclose(basis, basis.swapaxes(3, 4))


def _may_be(given: tuple[int, ...], rows: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether numbers of the shape `given` can be `rows` of `shape`: in that shape, or flat in rows or altogether.
    A matrix is not taken for a list of irreps although their numbers may be equal."""
    flat = int(np.prod(shape, dtype=int))
    forms = ((*rows, *shape), (*rows, flat), (int(np.prod(rows, dtype=int)) * flat,))
    return _squeezed(given) in map(_squeezed, forms)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _unreadable(
    config: TargetConfig, numbers: np.ndarray, rows: tuple[int, ...], fitting: Mapping[str, tuple[int, ...]]
) -> EquijaxError:
    found = f"has shape {list(numbers.shape)}"
    if fitting:
        return EquijaxError(
            f"{found}, which can be {' or '.join(fitting)}; expected label: {' or label: '.join(fitting)} in the target"
        )
    per = {"system": "", "atom": " per atom", "pair": " per pair of atoms"}[config.per]
    forms = [f"{name} {[*rows, *shape]}" for name, shape in readings(config).items()]
    return EquijaxError(f"{found}; expected {config.components}{per}: {' or '.join(forms)}, also flat")


def _symmetric(tensor: CartesianTensor, values: np.ndarray) -> np.ndarray:
    """Irreps of Cartesian tensors; EquijaxError when a part would be dropped."""
    lost, why = tensor.misfit(values)
    if lost > MISFIT:
        raise EquijaxError(
            f"is not a tensor {tensor.formula}{', traceless' if tensor.traceless else ''}: {why}, and the part that "
            f"does not fit has {100 * lost:.2g} % of the largest element; expected labels of this symmetry, or another "
            "target"
        )
    return np.asarray(tensor.to_irreps(values))
