"""Metrics of scores against targets."""
