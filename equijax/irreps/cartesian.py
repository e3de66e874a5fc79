"""Cartesian tensors with index symmetries, and their irreps.

A formula such as `ijkl=jikl=ijlk=klij` names the indices and the permutations that leave the tensor as it is (or change
its sign: `ij=-ji`). The tensors that obey it are a sum of irreps of O(3). Here is an orthonormal basis of them, so that
the Frobenius norm of the tensor is the norm of its components, in e3nn's conventions: axes x, y, z, and irreps by
ascending degree.

The basis: vectors are coupled one after another, (((1 x 1) x 1) x ...), which gives an orthonormal basis of all tensors
of that rank, one copy of an irrep per path of intermediate degrees. The projector on the symmetry commutes with
rotations, so it mixes only paths of equal degree: its columns there, orthonormalised in the order of the paths, are the
copies. Of stiffness tensors `ijkl=jikl=ijlk=klij` the first 0e is then δ_ij δ_kl / 3, three times the bulk modulus, and
the second 2√5 times the shear modulus.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import string
from typing import Any, Literal

import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.irreps import Irrep, Irreps, Term
from equijax.irreps.wigner_3j import wigner_3j

MAX_RANK = 4

Array = Any  # numpy on the host, jax.Array inside jit
Permutation = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CartesianTensor:
    """Tensors of the symmetry `formula`. `parity` pseudo: one more sign under inversion than the indices bring.
    `traceless`: every trace vanishes, for fully symmetric formulas. Raises EquijaxError for what is no symmetry."""

    formula: str
    parity: Literal["true", "pseudo"] = "true"
    traceless: bool = False

    def __post_init__(self) -> None:
        group = _group(self.formula)
        if self.traceless and (self.rank < 2 or len(group) < _factorial(self.rank) or -1 in group.values()):
            raise EquijaxError(
                f"tensor '{self.formula}': traceless is for tensors symmetric in all of two or more indices, ij=ji"
            )
        if not len(self.matrix):
            raise EquijaxError(f"tensor '{self.formula}': only zero has this symmetry")

    @property
    def rank(self) -> int:
        return len(_equal_terms(self.formula)[0][0])

    @property
    def shape(self) -> tuple[int, ...]:
        return (3,) * self.rank

    @property
    def is_fully_symmetric(self) -> bool:
        """Unchanged by every permutation of the indices."""
        group = _group(self.formula)
        return len(group) == _factorial(self.rank) and -1 not in group.values()

    @property
    def irreps(self) -> Irreps:
        return _decomposed(self.formula, self.parity, self.traceless)[0]

    @property
    def matrix(self) -> np.ndarray:
        """Orthonormal rows [dim, 3^rank], one per component; float64, read-only."""
        return _decomposed(self.formula, self.parity, self.traceless)[1]

    @property
    def basis(self) -> np.ndarray:
        """The rows of `matrix` as tensors [dim, 3, 3, ...]."""
        return self.matrix.reshape(-1, *self.shape)

    def to_irreps(self, tensor: Array) -> Array:
        """Components [..., dim] of tensors [..., 3, 3, ...]; what does not have the symmetry is dropped (`misfit`)."""
        self._check(tensor)
        flat = tensor.reshape(*tensor.shape[: tensor.ndim - self.rank], 3**self.rank)
        return flat @ self.matrix.T.astype(flat.dtype)

    def to_cartesian(self, components: Array) -> Array:
        """Tensors [..., 3, 3, ...] of components [..., dim]."""
        if components.shape[-1] != len(self.matrix):
            raise EquijaxError(f"tensor '{self.formula}': {components.shape[-1]} components; expected {self.irreps}")
        flat = components @ self.matrix.astype(components.dtype)
        return flat.reshape(*components.shape[:-1], *self.shape)

    def misfit(self, tensor: np.ndarray) -> tuple[float, str]:
        """What `to_irreps` would drop: the largest element of it over the largest of `tensor` [..., 3, 3, ...], and the
        condition that is violated most, in words. Numbers up to about 1e-6 are rounding of files."""
        self._check(tensor)
        tensor = np.asarray(tensor, np.float64)
        size = float(np.abs(tensor).max(initial=0.0))
        if size == 0.0:
            return 0.0, ""
        lost = float(np.abs(tensor - self.to_cartesian(self.to_irreps(tensor))).max()) / size
        found: list[tuple[float, str]] = []
        first, *others = _equal_terms(self.formula)
        axes = range(tensor.ndim - self.rank, tensor.ndim)
        for letters, sign in others:
            change = tensor - sign * np.einsum(f"...{letters}->...{first[0]}", tensor)
            equal = f"{first[0]} and {letters}" if sign > 0 else f"{first[0]} and minus {letters}"
            found.append((float(np.abs(change).max()), f"{equal} differ by up to {np.abs(change).max():.3g}"))
        if self.traceless:
            trace = np.abs(np.trace(tensor, axis1=axes[0], axis2=axes[1])).max()
            found.append((float(trace), f"the trace is up to {trace:.3g}"))
        return lost, max(found, default=(0.0, ""))[1]

    def _check(self, tensor: Array) -> None:
        if tuple(tensor.shape[tensor.ndim - self.rank :]) != self.shape or tensor.ndim < self.rank:
            raise EquijaxError(f"tensor '{self.formula}': shape {list(tensor.shape)}; expected [..., {self.shape}]")


def _factorial(n: int) -> int:
    return n * _factorial(n - 1) if n > 1 else 1


@functools.cache
def _equal_terms(formula: str) -> tuple[tuple[str, int], ...]:
    """(letters, sign) of the terms: `ij=-ji` to (("ij", 1), ("ji", -1))."""
    terms = []
    for term in formula.replace(" ", "").split("="):
        letters, sign = (term[1:], -1) if term.startswith("-") else (term, 1)
        terms.append((letters, sign))
    first, sign = terms[0]
    example = "expected equal terms such as ij=ji, ij=-ji or ijkl=jikl=ijlk=klij"
    if not first or sign < 0 or len(set(first)) != len(first) or not set(first) <= set(string.ascii_lowercase):
        raise EquijaxError(f"tensor '{formula}': the first term has to be different letters; {example}")
    if len(first) > MAX_RANK:
        raise EquijaxError(f"tensor '{formula}': rank {len(first)}; at most {MAX_RANK}")
    for letters, _ in terms:
        if sorted(letters) != sorted(first):
            raise EquijaxError(f"tensor '{formula}': '{letters}' does not have the indices of '{first}'; {example}")
    return tuple(terms)


@functools.cache
def _group(formula: str) -> dict[Permutation, int]:
    """The permutations of indices that the formula implies, and their signs."""
    (first, _), *others = _equal_terms(formula)
    generators = {(tuple(first.index(letter) for letter in letters), sign) for letters, sign in others}
    group: set[tuple[Permutation, int]] = {(tuple(range(len(first))), 1)}
    while True:
        products = {
            (tuple(one[k] for k in other), sign * other_sign)
            for (one, sign), (other, other_sign) in itertools.product(group, generators)
        }
        if products <= group:
            break
        group |= products
    if len(signs := dict(group)) < len(group):
        raise EquijaxError(f"tensor '{formula}': only zero is equal to minus itself")
    return signs


@functools.cache
def _coupled(rank: int) -> tuple[tuple[int, np.ndarray], ...]:
    """(l, orthonormal tensors [2l+1, 3^rank]) for every path of couplings of `rank` vectors."""
    paths = [(0, np.ones((1, 1)))]
    for _ in range(rank):
        paths = [
            (l, np.sqrt(2 * l + 1) * np.einsum("ia,ijk->kaj", rows, wigner_3j(before, 1, l)).reshape(2 * l + 1, -1))
            for before, rows in paths
            for l in range(abs(before - 1), before + 2)
        ]
    return tuple(paths)


@functools.cache
def _decomposed(formula: str, parity: str, traceless: bool) -> tuple[Irreps, np.ndarray]:
    rank = len(_equal_terms(formula)[0][0])
    group = _group(formula)
    sign = (-1) ** rank * (-1 if parity == "pseudo" else 1)
    terms, matrices = [], []
    for l in range(rank if traceless else 0, rank + 1):
        paths = np.stack([rows for degree, rows in _coupled(rank) if degree == l] or [np.zeros((2 * l + 1, 3**rank))])
        tensors = paths.reshape(*paths.shape[:2], *(3,) * rank)
        moved = [s * np.moveaxis(tensors, [2 + p for p in g], range(2, 2 + rank)) for g, s in group.items()]
        projected = np.mean(moved, axis=0).reshape(paths.shape)
        # The projector acts on paths alone: its matrix is that of any one component.
        mixing = _orthonormalised(np.einsum("pma,qma->qp", paths, projected) / (2 * l + 1))
        if len(mixing):
            terms.append(Term(len(mixing), Irrep(l, sign)))
            matrices.append(np.einsum("qp,pma->qma", mixing, paths).reshape(-1, 3**rank))
    matrix = np.concatenate(matrices) if matrices else np.zeros((0, 3**rank))
    matrix[np.abs(matrix) < 1e-14] = 0.0
    matrix.setflags(write=False)
    return Irreps(terms), matrix


def _orthonormalised(rows: np.ndarray) -> np.ndarray:
    """Gram-Schmidt of the rows in order, the first sizeable entry of each positive; dependent rows are left out."""
    found: list[np.ndarray] = []
    for row in rows:
        for _ in range(2):
            for known in found:
                row = row - (row @ known) * known
        if (norm := np.linalg.norm(row)) > 1e-8:
            row = row / norm
            found.append(row * np.sign(row[np.flatnonzero(np.abs(row) > 1e-8)[0]]))
    return np.array(found).reshape(-1, rows.shape[1])
