"""Data sources: each lists its samples and loads one of them."""
