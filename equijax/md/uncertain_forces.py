"""Dynamics that stops where the model does not know the forces."""

from __future__ import annotations

from equijax.errors import EquijaxError
from equijax.md.engine import Monitor
from equijax.md.settings import MDSettings
from equijax.potential.potential import Potential
from equijax.potential.uncertainty import ADD_UNCERTAINTIES, force_uncertainty


def uncertainty_monitor(potential: Potential, settings: MDSettings, monitor: Monitor | None) -> Monitor | None:
    """The monitor of `max_force_uncertainty`, or `monitor` where the settings have none.

    Raises EquijaxError for a model without uncertainties of its forces, and for two monitors.
    """
    limit = settings.max_force_uncertainty
    if limit is None:
        return monitor
    if monitor is not None:
        raise EquijaxError("max_force_uncertainty: a run has one monitor; leave one of them out")
    if "forces_uncertainty" not in potential.uncertainties:
        raise EquijaxError(
            f"max_force_uncertainty: this model has no uncertainties of its forces; fix: {ADD_UNCERTAINTIES}"
        )
    return Monitor(force_uncertainty, limit, "force uncertainty (eV/Å)")
