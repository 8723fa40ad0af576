"""Self-supervised audio representations with SSAMBA, a bidirectional Mamba over spectrogram patches."""
