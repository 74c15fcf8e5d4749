"""From Parquet to batches of tensors."""
