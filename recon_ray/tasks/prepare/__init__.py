"""Conversion of a data set to sharded Parquet."""
