"""The one internal layout of equivariant features: [..., (L+1)², C], e3nn order, channel last.

Row l² + l + m holds component m of degree l; parity is natural, (-1)^l, and the multiplicity C is the same for
every degree, as in MACE, eSCN and EquiformerV2. Why: docs/decisions/0002.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from equijax.errors import EquijaxError


def degree_slice(l: int) -> slice:
    """The rows of degree l.

    >>> degree_slice(2)
    slice(4, 9, None)
    """
    return slice(l * l, (l + 1) ** 2)


def irrep_name(l: int) -> str:
    """`0e`, `1o`, `2e`, ...: degree and natural parity."""
    return f"{l}{'eo'[l % 2]}"


@dataclasses.dataclass(frozen=True)
class FeatureIrreps:
    """`channels` copies of every degree 0..lmax with natural parity."""

    channels: int
    lmax: int

    @property
    def dim(self) -> int:
        """Number of rows, (lmax+1)²."""
        return (self.lmax + 1) ** 2

    def __str__(self) -> str:
        return "+".join(f"{self.channels}x{irrep_name(l)}" for l in range(self.lmax + 1))


def layered(channels: int, lmaxs: Iterable[int]) -> str:
    """The features of several layers side by side, each with all degrees up to its own.

    >>> layered(8, (1, 0))
    '8x0e+8x1o+8x0e'
    """
    return "+".join(str(FeatureIrreps(channels, lmax)) for lmax in lmaxs)


def parse_feature_irreps(text: str) -> FeatureIrreps:
    """The features that a string such as `64x0e+64x1o` stands for.

    Raises EquijaxError unless it lists every degree from 0 with natural parity and one common multiplicity.

    >>> parse_feature_irreps("64x0e + 64x1o")
    FeatureIrreps(channels=64, lmax=1)
    """
    expected = "expected C x 0e + C x 1o + C x 2e ... with one C and natural parity, for example '64x0e+64x1o'"
    multiplicities = []
    for l, term in enumerate(text.replace(" ", "").split("+")):
        match = re.fullmatch(r"(\d+)x(\d+)([eo])", term)
        if match is None:
            raise EquijaxError(f"irreps '{text}': cannot read the term '{term}'; {expected}")
        if match.group(2) + match.group(3) != irrep_name(l):
            raise EquijaxError(f"irreps '{text}': term {l + 1} is {match.group(2)}{match.group(3)}; {expected}")
        multiplicities.append(int(match.group(1)))
    if len(set(multiplicities)) != 1 or multiplicities[0] < 1:
        raise EquijaxError(f"irreps '{text}': multiplicities are {multiplicities}; {expected}")
    return FeatureIrreps(multiplicities[0], len(multiplicities) - 1)


def to_mul_ir(x: jax.Array, lmax: int) -> jax.Array:
    """[N, (L+1)², C] to the flat e3nn `mul_ir` layout [N, C (L+1)²]: degree, then channel, then m."""
    blocks = [x[:, degree_slice(l)].swapaxes(1, 2).reshape(x.shape[0], -1) for l in range(lmax + 1)]
    return jnp.concatenate(blocks, axis=1)


def from_mul_ir(flat: jax.Array, irreps: FeatureIrreps) -> jax.Array:
    """The inverse of `to_mul_ir`."""
    blocks, start = [], 0
    for l in range(irreps.lmax + 1):
        size = irreps.channels * (2 * l + 1)
        blocks.append(flat[:, start : start + size].reshape(-1, irreps.channels, 2 * l + 1).swapaxes(1, 2))
        start += size
    return jnp.concatenate(blocks, axis=1)
