"""Pretraining on unlabelled recordings."""
