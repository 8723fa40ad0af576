"""Public data sets as manifests, from the folders in which they are published."""

from ssamba.datasets.dataset import PublicDataset
from ssamba.datasets.prepare import DATASETS, Prepared, find_dataset, prepare, write_prepared

__all__ = ["DATASETS", "Prepared", "PublicDataset", "find_dataset", "prepare", "write_prepared"]
