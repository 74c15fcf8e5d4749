"""Foreign weight files and their names."""
