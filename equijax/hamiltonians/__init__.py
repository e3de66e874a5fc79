"""Hamiltonian matrices: files, molecules in PySCF, models that predict them, and how good they are."""
