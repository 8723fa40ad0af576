"""Fine-tuning on labeled recordings."""
