"""Features of frozen teachers, computed once for a whole prepared set."""
