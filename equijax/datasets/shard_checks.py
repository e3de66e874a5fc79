"""What can only be asked of all frames of a directory of shards together: E0s, units, frames that occur twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np

from equijax.datasets import e0
from equijax.datasets.composition import LabelSums, compositions
from equijax.datasets.plausibility import implausible
from equijax.datasets.shards import Shards
from equijax.errors import EquijaxError, EquijaxWarning


def check_shards(
    shards: Shards, sums: LabelSums, isolated: Mapping[int, float], atomic_energies: str | None
) -> Iterator[str]:
    """Compare energies with ΣE0 and look for doubtful units; lines that say what was done on what.

    Raises EquijaxError and warns as reading into memory does.
    """
    energies, source = check_energies(sums, isolated, atomic_energies)
    if sums.labels.get("energy"):
        interaction = InteractionEnergies(energies)
        for first, arrays in zip(shards.firsts.tolist(), shards.columns(InteractionEnergies.COLUMNS), strict=False):
            interaction.add(first, arrays, None)
        interaction.check_plausible(shards)
        yield f"energies of all {interaction.count} frames compared with atomic energies ({source})"
    sample = shards.sample()
    for doubt in implausible(sample, energies, fitted=source == "least_squares"):
        warnings.warn(doubt, EquijaxWarning, stacklevel=2)
    yield f"units, signs and distances judged by {len(sample)} frames evenly spread over all {shards.frames}"
    digests = np.sort(np.concatenate([columns["geometry"] for columns in shards.columns(["geometry"])]))
    repeated = int((digests[1:] == digests[:-1]).sum())
    if repeated:
        yield f"{repeated} frames occur more than once"


def check_energies(sums: LabelSums, isolated: Mapping[int, float], source: str | None) -> tuple[dict[int, float], str]:
    """(E0s {Z: eV}, where they come from) to compare energies with: those of isolated atoms, or fitted."""
    missing = [z for z in sums.atoms if z not in isolated]
    if source is None:
        source = "least_squares" if missing and sums.labels.get("energy") else "isolated_atoms"
    if source == "least_squares":
        fitted = sums.least_squares(None) if sums.labels.get("energy") else {}
        return fitted | {z: isolated.get(z, 0.0) for z in missing if z not in fitted}, source
    if missing and sums.labels.get("energy"):
        names = ", ".join(map(e0.symbol, missing))
        raise EquijaxError(
            f"--atomic-energies: no isolated atom of {names} in the sources; expected one-atom frames, or least_squares"
        )
    return {z: isolated.get(z, 0.0) for z in sums.atoms}, source


class InteractionEnergies:
    """Sums of (E - ΣE0)/N in eV over frames with an energy, and the frame where it is largest in size."""

    COLUMNS = ("num_atoms", "atomic_numbers", "energy", "has_energy")

    def __init__(self, atomic_energies: Mapping[int, float]) -> None:
        self.energies = dict(atomic_energies)
        self.count = 0
        self.atomic_numbers: set[int] = set()
        self._table = np.array([self.energies.get(z, 0.0) for z in range(119)])
        self._values: list[tuple[int, float, float]] = []
        self._worst = (0.0, -1)

    def add(self, first: int, arrays: Mapping[str, np.ndarray], keep: np.ndarray | None) -> None:
        """Add the frames of a shard, whose first is number `first`; only those of the mask `keep`, if given."""
        for rows, table in compositions(arrays["num_atoms"], arrays["atomic_numbers"]):
            mask = np.ones(len(table), bool) if keep is None else keep[rows]
            self.atomic_numbers |= set(np.flatnonzero(table[mask].any(axis=0)).tolist())
            mask = mask & arrays["has_energy"][rows]
            if not mask.any():
                continue
            isolated = table[mask] @ self._table
            values = (arrays["energy"][rows][mask] - isolated) / arrays["num_atoms"][rows][mask]
            mean = float(values.mean())
            self.count += len(values)
            self._values.append((len(values), mean, float(((values - mean) ** 2).sum())))
            worst = int(np.argmax(np.abs(values)))
            if abs(values[worst]) > abs(self._worst[0]) or self._worst[1] < 0:
                self._worst = (float(values[worst]), first + rows.start + int(np.flatnonzero(mask)[worst]))

    def check_plausible(self, shards: Shards) -> None:
        """As `e0.check_plausible` of all frames: error above 100 eV/atom, warning above 20 eV/atom."""
        if self._worst[1] >= 0:
            e0.check_plausible(shards.structures([self._worst[1]]), self.energies)

    @property
    def mean(self) -> float:
        """eV per atom."""
        return float(sum(n * mean for n, mean, _ in self._values) / self.count)

    @property
    def std(self) -> float:
        """eV per atom."""
        mean = self.mean
        squares = sum(squares + n * (part - mean) ** 2 for n, part, squares in self._values)
        return float(np.sqrt(squares / self.count))
