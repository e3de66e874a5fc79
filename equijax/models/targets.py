"""Tensor targets: what a user writes about one, what it is made of, and the statistics of its labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pydantic

from equijax.config.base import StrictModel
from equijax.errors import EquijaxError
from equijax.irreps.cartesian import CartesianTensor
from equijax.irreps.irreps import Irreps, parse_irreps

CARTESIAN_FORMS = {
    "1x1o": CartesianTensor("i"),
    "1x0e+1x2e": CartesianTensor("ij=ji"),
    "1x2e": CartesianTensor("ij=ji", traceless=True),
    "1x1e": CartesianTensor("ij=-ji"),
    "1x0e+1x1e+1x2e": CartesianTensor("ij"),
    "2x0e+2x2e+1x4e": CartesianTensor("ijkl=jikl=ijlk=klij"),
}
"""Irreps that are those of one Cartesian tensor in common use."""

STIFFNESS = "2x0e+2x2e+1x4e"


class TargetConfig(StrictModel):
    """A tensor to predict: its symmetry, as `irreps` or as a Cartesian `tensor`, and what it belongs to."""

    irreps: str | None = None
    """such as 0e+2e; those of a common Cartesian tensor are read and given as such: 1o a vector, 0e+2e symmetric, 2e
    symmetric and traceless, 1e antisymmetric, 0e+1e+2e general 3 x 3 matrices, 2x0e+2x2e+4e stiffness tensors"""
    tensor: str | None = None
    """index symmetry, such as i, ij=ji, ij=-ji, ijk=ikj or ijkl=jikl=ijlk=klij; instead of irreps"""
    parity: Literal["true", "pseudo"] = "true"
    """of a `tensor`: pseudo has one more sign under inversion than its indices bring"""
    traceless: bool = False
    """of a `tensor` that is symmetric in all indices: every trace vanishes"""
    per: Literal["system", "atom", "pair"] = "system"
    """one value for the structure, for every atom, or for every pair of atoms within the cutoff"""
    reduce: Literal["sum", "mean"] = "sum"
    """how atoms add up to a system: sum (extensive, such as a dipole) or mean (intensive, such as a stiffness)"""
    form: Literal["direct", "charges_and_dipoles", "field", "square", "exponential"] = "direct"
    """direct: irreps of atoms. charges_and_dipoles: a vector from atomic charges at their positions and atomic dipoles.
    field: minus derivatives of one energy by a uniform field, shared by all targets of this form. square, exponential:
    functions of a symmetric matrix or stiffness (in Mandel's notation), positive (semi)definite"""
    total_charge: float = 0.0
    """of charges_and_dipoles: what the charges of a structure add up to, in e"""
    label: Literal["cartesian", "irreps", "voigt"] | None = None
    """how files hold the labels, needed where their number of components leaves two possibilities"""
    unit: str = ""
    """for tables and plots; labels are not converted"""

    @pydantic.model_validator(mode="after")
    def _is_sound(self) -> TargetConfig:
        if (self.irreps is None) == (self.tensor is None):
            raise ValueError("give either irreps or tensor")
        if self.tensor is None and (self.parity != "true" or self.traceless):
            raise ValueError("parity and traceless go with tensor; irreps say both themselves")
        # EquijaxError is a ValueError, which pydantic reports with the field.
        components, tensor = self.components, self.cartesian
        if components.lmax > 4:
            raise ValueError(f"{components}: degrees above 4 are not supported")
        if self.per != "system" and self.form != "direct":
            raise ValueError(f"form {self.form} is for targets per system")
        if self.per != "system" and "reduce" in self.model_fields_set:
            raise ValueError("reduce is for targets per system")
        rank = None if tensor is None or tensor.parity == "pseudo" or tensor.traceless else tensor.rank
        if self.form == "charges_and_dipoles" and rank != 1:
            raise ValueError(f"form charges_and_dipoles is for vectors (1o), not {components}")
        if self.form != "charges_and_dipoles" and self.total_charge:
            raise ValueError("total_charge is for form charges_and_dipoles")
        if self.form == "field" and not (rank in (1, 2, 3) and tensor is not None and tensor.is_fully_symmetric):
            raise ValueError(f"form field is for i, ij=ji and the fully symmetric ijk, not {components}")
        if self.form in ("charges_and_dipoles", "field") and self.reduce == "mean":
            raise ValueError(f"form {self.form} gives extensive targets: reduce is sum")
        is_matrix = rank == 2 and tensor is not None and tensor.is_fully_symmetric
        if self.form in ("square", "exponential") and not (is_matrix or str(components) == STIFFNESS):
            raise ValueError(f"form {self.form} is for ij=ji and stiffness tensors, not {components}")
        return self

    @property
    def cartesian(self) -> CartesianTensor | None:
        """The Cartesian form, None where there is none."""
        if self.tensor is not None:
            return CartesianTensor(self.tensor, self.parity, self.traceless)
        return CARTESIAN_FORMS.get(str(self.components))

    @property
    def components(self) -> Irreps:
        """What the target is made of, in the order of its components."""
        if self.tensor is not None:
            return CartesianTensor(self.tensor, self.parity, self.traceless).irreps
        return parse_irreps(self.irreps or "")


@dataclasses.dataclass(frozen=True)
class TargetStatistics:
    """Numbers of the training labels, fixed when a model is built and stored with it.

    `scales`: root mean square of the components of every copy of an irrep, after the shifts. `shifts` [copies of 0e,
    elements]: what every element adds to these scalars (or, of an intensive target, their mean over the atoms); zero
    for pairs and for forms other than direct and field. `means`: mean of the labels in every copy of 0e, per atom for a
    positive form that is a sum over atoms.
    """

    scales: tuple[float, ...]
    shifts: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"scales": list(self.scales), "shifts": [list(row) for row in self.shifts], "means": list(self.means)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TargetStatistics:
        return cls(
            scales=tuple(float(value) for value in data["scales"]),
            shifts=tuple(tuple(float(value) for value in row) for row in data["shifts"]),
            means=tuple(float(value) for value in data["means"]),
        )


def unit_statistics(config: TargetConfig, elements: Sequence[int]) -> TargetStatistics:
    """Statistics with scales of 1 and without shifts."""
    scalars = [block for block in config.components.blocks() if str(block.irrep) == "0e"]
    zeros = (0.0,) * len(elements)
    return TargetStatistics((1.0,) * len(config.components.blocks()), (zeros,) * len(scalars), (0.0,) * len(scalars))


def target_statistics(
    config: TargetConfig,
    labels: Sequence[np.ndarray],
    atomic_numbers: Sequence[np.ndarray],
    elements: Sequence[int],
) -> TargetStatistics:
    """Statistics of labels as irreps ([dim], [N, dim] or [N, N, dim] of every structure) of the given atoms.

    Shifts are the least-squares solution of smallest norm. Raises EquijaxError without labels and when all are zero.
    """
    if not labels:
        raise EquijaxError("there are no labels to take statistics of")
    rows = np.concatenate([np.asarray(label, np.float64).reshape(-1, config.components.dim) for label in labels])
    composition = _composition(config, labels, atomic_numbers, elements)
    blocks = config.components.blocks()
    rest = rows.copy()
    shifts, means = [], []
    for block in blocks:
        if str(block.irrep) != "0e":
            continue
        column = rows[:, block.columns.start]
        mean = float(column.mean())
        if config.form in ("square", "exponential") and config.reduce == "sum":
            mean = float(column.sum() / sum(len(numbers) for numbers in atomic_numbers))
        shift = np.zeros(len(elements))
        if composition is not None:
            shift = np.linalg.lstsq(composition, column, rcond=None)[0]
            rest[:, block.columns.start] -= composition @ shift
        elif config.per == "system":
            rest[:, block.columns.start] -= column.mean()
        shifts.append(tuple(map(float, shift)))
        means.append(mean)
    whole = float(np.sqrt(np.mean(rest**2)))
    if not whole > 0:
        whole = float(np.sqrt(np.mean(rows**2)))
    if not whole > 0:
        raise EquijaxError("all labels are zero")
    sizes = [float(np.sqrt(np.mean(rest[:, block.columns] ** 2))) for block in blocks]
    # An irrep that does not vary gets the scale of the whole: dividing by rounding errors would inflate them.
    scales = tuple(size if size > 1e-6 * whole else whole for size in sizes)
    return TargetStatistics(scales, tuple(shifts), tuple(means))


def _composition(
    config: TargetConfig, labels: Sequence[np.ndarray], atomic_numbers: Sequence[np.ndarray], elements: Sequence[int]
) -> np.ndarray | None:
    """How much of every element's shift is in every row of the labels; None where there are no shifts."""
    if config.form not in ("direct", "field") or config.per == "pair":
        return None
    counts = [(np.asarray(numbers)[:, None] == np.asarray(elements)).astype(np.float64) for numbers in atomic_numbers]
    if config.per == "atom":
        return np.concatenate(counts)
    return np.array([c.sum(axis=0) if config.reduce == "sum" else c.mean(axis=0) for c in counts])


def with_targets(
    model: Any,
    targets: Mapping[str, TargetConfig],
    statistics_of_targets: Mapping[str, TargetStatistics],
    statistics: Any,
) -> Any:
    """The module of the config `model` with heads for `targets`, whose parameters are `heads_NAME` beside the model's
    own; without targets the module of the model."""
    if not targets:
        return model.build(statistics)
    from equijax.models.heads import WithTargets

    return WithTargets(model, dict(targets), dict(statistics_of_targets), statistics)
