"""Public data sets as manifests, from the folders in which they are published."""

from ssamba.data.recipes.prepare import Prepared, prepare, write_prepared
from ssamba.data.recipes.recipe import Recipe
from ssamba.data.recipes.registry import RECIPES, find_recipe

__all__ = ["RECIPES", "Prepared", "Recipe", "find_recipe", "prepare", "write_prepared"]
