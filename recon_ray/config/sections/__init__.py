"""Sections of options that several jobs share."""
