"""Screen recipes of pretraining by short runs: `python -m benchmarks.screening ARMS.toml -o FOLDER`; see `runner.py`."""
