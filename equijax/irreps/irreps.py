"""Lists of irreps in e3nn's notation, `2x0e+2x2e+1x4e`, as values."""

from __future__ import annotations

import re
from typing import NamedTuple

from equijax.errors import EquijaxError

_TERM = re.compile(r"(?:(\d{1,6})x)?(\d{1,2})([eo])")


class Irrep(NamedTuple):
    """Degree l, and parity under inversion, 1 or -1."""

    l: int
    parity: int

    @property
    def dim(self) -> int:
        return 2 * self.l + 1

    @property
    def is_natural(self) -> bool:
        """Parity (-1)^l, that of spherical harmonics and of polar tensors."""
        return self.parity == (-1) ** self.l

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.parity == 1 else 'o'}"


class Term(NamedTuple):
    """`multiplicity` copies of an irrep."""

    multiplicity: int
    irrep: Irrep


class Block(NamedTuple):
    """One copy of an irrep and the columns that hold it."""

    irrep: Irrep
    columns: slice


class Irreps(tuple[Term, ...]):
    """The terms in the order of the columns; of one term, copy after copy (`mul_ir`)."""

    __slots__ = ()

    @property
    def dim(self) -> int:
        return sum(count * irrep.dim for count, irrep in self)

    @property
    def lmax(self) -> int:
        return max((irrep.l for _, irrep in self), default=0)

    def blocks(self) -> tuple[Block, ...]:
        """Every copy of every irrep, in order."""
        found, start = [], 0
        for count, irrep in self:
            for _ in range(count):
                found.append(Block(irrep, slice(start, start + irrep.dim)))
                start += irrep.dim
        return tuple(found)

    def __str__(self) -> str:
        return "+".join(f"{count}x{irrep}" for count, irrep in self)


def parse_irreps(text: str) -> Irreps:
    """The irreps that `2x0e + 1o` stands for. Raises EquijaxError for anything else.

    >>> str(parse_irreps("0e + 2x2e"))
    '1x0e+2x2e'
    """
    terms = []
    for term in text.replace(" ", "").split("+"):
        match = _TERM.fullmatch(term)
        if match is None or match.group(1) == "0":
            raise EquijaxError(
                f"irreps '{text}': cannot read the term '{term}'; expected terms such as 0e, 1o or 2x2e, joined by +"
            )
        terms.append(Term(int(match.group(1) or 1), Irrep(int(match.group(2)), 1 if match.group(3) == "e" else -1)))
    return Irreps(terms)
