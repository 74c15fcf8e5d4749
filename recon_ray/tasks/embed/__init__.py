"""Feature vectors of the shapes of a set or of single files."""
