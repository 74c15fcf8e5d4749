"""Point clouds: sampling, neighbors, distances, transforms and per-sample random numbers."""
