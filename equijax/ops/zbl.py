"""Ziegler-Biersack-Littmark screened nuclear repulsion, switched off at the sum of covalent radii."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from equijax.ops.cutoff import polynomial_cutoff

# e²/(4πε0) in eV Å as MACE has it; the screening length is 0.4543 * 0.529 Å / (Zi^0.3 + Zj^0.3).
COULOMB_EV_ANGSTROM = 14.3996
_SCREENING_LENGTH = 0.4543 * 0.529
_COEFFICIENTS = np.array([0.1818, 0.5099, 0.2802, 0.02817])
_EXPONENTS = np.array([3.2, 0.9423, 0.4028, 0.2016])


def zbl_edge_energies(
    lengths: jax.Array, z_sender: jax.Array, z_receiver: jax.Array, radius_sum: jax.Array, power: int
) -> jax.Array:
    """Half of the pair energy in eV on every directed edge, so that both directions give the pair.

    ½ k Zi Zj / r φ(r/a) f(r; R_i + R_j), φ the universal screening function (Ziegler, Biersack, Littmark 1985),
    f the polynomial envelope that ends at the sum of the covalent radii. All arguments share one shape.
    """
    dtype = lengths.dtype
    length_scale = _SCREENING_LENGTH / (z_sender**0.3 + z_receiver**0.3)
    x = (lengths / length_scale)[..., None]
    screening = jnp.sum(_COEFFICIENTS.astype(dtype) * jnp.exp(-_EXPONENTS.astype(dtype) * x), axis=-1)
    coulomb = COULOMB_EV_ANGSTROM * z_sender * z_receiver / lengths
    return 0.5 * coulomb * screening * polynomial_cutoff(lengths, radius_sum, power)
