"""Public data sets as manifests, made from the folders that their authors publish."""

from ssamba.datasets.dataset import PublicDataset
from ssamba.datasets.prepare import DATASETS, Prepared, find_dataset, prepare, write_prepared

__all__ = ["DATASETS", "Prepared", "PublicDataset", "find_dataset", "prepare", "write_prepared"]
