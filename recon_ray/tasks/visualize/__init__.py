"""Reconstructions and attention of chosen shapes."""
