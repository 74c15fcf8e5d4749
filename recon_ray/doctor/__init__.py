"""What may be wrong with a machine or a cluster, found before a run depends on it."""
