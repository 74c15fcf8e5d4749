"""Training: batches, optimizer, schedule, metrics and checkpoints."""
