"""Data sets: sources, file readers, preparation, the prepared format, loading."""
