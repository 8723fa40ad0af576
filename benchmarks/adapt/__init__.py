"""What adapting the shipped weights to recordings brings: `python -m benchmarks.adapt`."""
