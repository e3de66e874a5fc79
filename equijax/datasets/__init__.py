"""Data in: readers, labels, reference energies, splits, statistics, and the audit of all of it."""

from equijax.datasets.audit import Audit, audit
from equijax.datasets.config import DatasetConfig, ReadOptions
from equijax.datasets.load import Dataset, load_dataset
from equijax.datasets.readers import read_structures
from equijax.datasets.statistics import DatasetStatistics, training_statistics

__all__ = [
    "Audit",
    "Dataset",
    "DatasetConfig",
    "DatasetStatistics",
    "ReadOptions",
    "audit",
    "load_dataset",
    "read_structures",
    "training_statistics",
]
