"""Parameter-free maths, arrays in and arrays out. `TENSOR_PRODUCTS` is the literal table of products."""

from equijax.ops.clebsch_gordan import ClebschGordan as ClebschGordan

TENSOR_PRODUCTS = {
    "clebsch_gordan": ClebschGordan,
}
