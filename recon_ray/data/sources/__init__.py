"""Data sources: published sets, the user's own folder, procedural shapes."""
