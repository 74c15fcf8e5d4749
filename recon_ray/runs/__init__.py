"""The folder of a run: storage, checkpoints, lease, records."""
