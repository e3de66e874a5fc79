"""`equijax md`."""
