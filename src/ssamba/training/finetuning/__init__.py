"""Fine-tuning on labelled recordings."""
