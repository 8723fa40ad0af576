"""Audio input: find and decode any file (`decode`, without torch), compute log-mel features (`fbank`), augment them."""
