"""Public data sets as manifests, from the folders in which they are published."""

from ssamba.datasets.prepare import Prepared, prepare, write_prepared
from ssamba.datasets.recipe import Recipe
from ssamba.datasets.registry import RECIPES, find_recipe

__all__ = ["RECIPES", "Prepared", "Recipe", "find_recipe", "prepare", "write_prepared"]
