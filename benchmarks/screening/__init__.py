"""Screen recipes of pretraining by short runs: `python -m benchmarks.screening` (`runner.py`)."""
