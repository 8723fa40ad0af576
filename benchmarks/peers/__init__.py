"""Other models on the open suite, beside ours: `python -m benchmarks.peers`."""
