"""Retrieval of shapes by shapes, pictures and words."""
