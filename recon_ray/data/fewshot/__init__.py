"""Few-shot episodes: their draw, and one of them as a prepared set."""
