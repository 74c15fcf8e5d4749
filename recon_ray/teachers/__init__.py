"""Frozen image and text encoders behind one protocol, pinned by name, tag and hash."""
