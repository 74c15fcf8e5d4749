"""Procedural shapes: the synthetic data set that needs no download."""
