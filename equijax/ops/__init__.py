"""Parameter-free maths, arrays in and arrays out. `TENSOR_PRODUCTS` is the literal table of products."""

from typing import Annotated

from pydantic import Field

from equijax.ops.clebsch_gordan import ClebschGordan as ClebschGordan
from equijax.ops.cp import CP as CP
from equijax.ops.gaunt_fourier import GauntFourier as GauntFourier
from equijax.ops.gaunt_grid import GauntGrid as GauntGrid
from equijax.ops.matrix_product import MatrixProduct as MatrixProduct
from equijax.ops.so2 import SO2 as SO2
from equijax.ops.vector_signal import VectorSignal as VectorSignal

TENSOR_PRODUCTS = {
    "clebsch_gordan": ClebschGordan,
    "gaunt_grid": GauntGrid,
    "gaunt_fourier": GauntFourier,
    "so2": SO2,
    "cp": CP,
    "vector_signal": VectorSignal,
    "matrix_product": MatrixProduct,
}

# What a config may name where a model multiplies features with an edge, or takes symmetric powers of features.
AnyEdgeProduct = Annotated[ClebschGordan | GauntGrid | GauntFourier | SO2 | CP, Field(discriminator="name")]
AnyPowerProduct = Annotated[ClebschGordan | GauntGrid | GauntFourier, Field(discriminator="name")]
