"""Data sets, one module each: what lies in their folders, and how a sample is read."""
