"""Readers of file formats and archives."""
