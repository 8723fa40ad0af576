"""Judging models: what they cost."""
