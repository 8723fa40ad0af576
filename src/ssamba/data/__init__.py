"""Training data: manifests of recordings, shards of them, the plan of an epoch, and batches of waveforms."""
