"""Pretraining on unlabeled recordings."""
