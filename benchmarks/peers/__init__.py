"""Score other published models on the open suite, beside the weights of this project: `python -m benchmarks.peers`."""
