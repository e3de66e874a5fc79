"""The prediction of a potential together with its uncertainty: of a committee or of the last layer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.potential.committee import CommitteeModule, committee_prediction
from equijax.potential.derivatives import Prediction, Uncertainty, energy_and_derivatives
from equijax.potential.last_layer import feature_columns, feature_derivatives, structure_features

if TYPE_CHECKING:
    from equijax.potential.potential import Potential

ADD_UNCERTAINTIES = (
    "`equijax calibrate MODEL --train FILES --valid FILES` adds them to a trained model, training.committee trains a "
    "committee"
)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What uncertainties are multiplied by so that they fit the errors on validation frames: numbers for a committee's
    standard deviations, eV/Å or eV for the last layer's (see `LastLayer`). A label that those frames did not have takes
    the factor of another: the forces that of the energy, the stress that of the forces."""

    energy: float
    forces: float
    stress: float

    def __post_init__(self) -> None:
        for name, factor in dataclasses.asdict(self).items():
            if not (0 < factor < float("inf")):
                raise EquijaxError(f"calibration.{name} is {factor}; expected a positive number")


def uncertain_prediction(
    potential: Potential, params: Any, graph: AtomGraph, vectors: jax.Array, derivatives: bool = False
) -> Prediction:
    """`energy_and_derivatives` of the potential with its `uncertainty`, if it has any.

    A committee's spread costs nothing beside its members. The last layer gives the energy's uncertainty for nothing;
    those of forces and stress cost as many reverse passes as there are features and come with `derivatives` only.
    """
    module = potential.module
    if isinstance(module, CommitteeModule):
        return scaled(committee_prediction(module, params, graph, vectors), potential.calibration)
    prediction = energy_and_derivatives(module, params, graph, vectors)
    if potential.last_layer is None:
        return prediction
    columns = feature_columns(potential.model_config)
    root = jnp.asarray(potential.last_layer.root(), vectors.dtype)
    if not (derivatives and potential.is_conservative):
        values = structure_features(prediction.node_features, columns, graph) @ root
        uncertainty = Uncertainty(energy=jnp.sqrt(jnp.sum(values**2, axis=1)))
    else:
        values, forces, stress = feature_derivatives(module, params, graph, vectors, columns, root)
        uncertainty = Uncertainty(
            energy=jnp.sqrt(jnp.sum(values**2, axis=1)),
            forces=jnp.sqrt(jnp.sum(forces**2, axis=0)),
            stress=jnp.sqrt(jnp.sum(stress**2, axis=0)),
        )
    return scaled(dataclasses.replace(prediction, uncertainty=uncertainty), potential.calibration)


def scaled(prediction: Prediction, calibration: Calibration | None) -> Prediction:
    """The prediction with its uncertainties multiplied by the factors of the calibration."""
    found = prediction.uncertainty
    if calibration is None or found is None:
        return prediction
    uncertainty = Uncertainty(
        energy=calibration.energy * found.energy,
        forces=None if found.forces is None else calibration.forces * found.forces,
        stress=None if found.stress is None else calibration.stress * found.stress,
    )
    return dataclasses.replace(prediction, uncertainty=uncertainty)


def force_uncertainty(prediction: Prediction) -> Any:
    """√(σx² + σy² + σz²) of every atom, [N] eV/Å: one number per atom that does not turn with the structure."""
    assert prediction.uncertainty is not None
    assert prediction.uncertainty.forces is not None
    return jnp.sqrt(jnp.sum(prediction.uncertainty.forces**2, axis=-1))
