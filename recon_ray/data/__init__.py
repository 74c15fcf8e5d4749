"""Prepared data sets: sources, sharded Parquet, rendering, and reading them back."""
