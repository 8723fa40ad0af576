"""Benchmarks: each module is a command, `python -m benchmarks.NAME`, that prints and saves its measurements."""
