"""Atomic orbitals: the shells of a basis, their order, blocks of a matrix between atoms, and how they rotate.

Matrices are in e3nn order everywhere in the package: shells as the basis set lists them, components m = -l..l, which
are the harmonics of v' = (y, z, x). Only `order` knows the orders of other programs.
"""
