"""Loading of prepared sets: Ray stream, batches of tensors, images."""
