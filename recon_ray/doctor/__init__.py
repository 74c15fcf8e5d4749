"""Checks of a machine or a cluster before a run depends on it."""
