"""Calculators for the images of a path (nudged elastic band) that evaluate all of them in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equijax.errors import EquijaxError
from equijax.potential.potential import Potential
from equijax.potential.prediction import has_stress
from equijax.precision import DType
from equijax.structure import Structure


class BatchedImages:
    """Gives every image a calculator; the first one that is asked computes all images that have moved.

    For ASE's NEB and whatever else moves several structures at a time. `batches` counts the calls of the model.
    """

    def __init__(self, potential: Potential, images: Sequence[Atoms], dtype: DType = "float64") -> None:
        self.potential = potential
        self.dtype: DType = dtype
        self.images = list(images)
        self.batches = 0
        for image in self.images:
            image.calc = ImageCalculator(self)

    def evaluate(self) -> None:
        """Compute every image whose results are not those of its present positions."""
        properties = ["energy", "forces"]
        moved = [image for image in self.images if image.calc.calculation_required(image, properties)]
        periodic = [has_stress(Structure.from_ase(image)) and self.potential.is_conservative for image in moved]
        wanted = (*properties, "stress") if all(periodic) else tuple(properties)
        results = self.potential.predict(moved, wanted, dtype=self.dtype)
        self.batches += 1
        for image, result in zip(moved, results, strict=True):
            values = {"energy": float(result["energy"]), "free_energy": float(result["energy"])}
            image.calc.atoms = image.copy()
            image.calc.results = {**values, "forces": result["forces"]}
            if "stress" in result:
                image.calc.results["stress"] = full_3x3_to_voigt_6_stress(result["stress"])


class ImageCalculator(Calculator):
    """The calculator of one image of a `BatchedImages`."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, together: BatchedImages) -> None:
        super().__init__()
        self._together = together

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        if not any(image is atoms for image in self._together.images):
            raise EquijaxError("this calculator belongs to one image of a path; use EquijaxCalculator elsewhere")
        self._together.evaluate()
