"""Collections of recordings: bulk embedding into tables, nearest neighbors, plots, predicted labels."""
