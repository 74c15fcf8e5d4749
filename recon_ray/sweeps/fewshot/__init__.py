"""Few-shot classification over many episodes."""
