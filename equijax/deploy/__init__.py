"""Models outside equijax: exported folders, the i-PI driver and the LAMMPS interface."""
