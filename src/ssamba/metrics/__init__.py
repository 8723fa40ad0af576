"""Metrics of scores against targets, and their bootstrap confidence intervals."""
