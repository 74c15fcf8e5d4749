"""Benchmarks, each against a named alternative in one run."""
