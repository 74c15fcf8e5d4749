"""Losses of pre-training."""
