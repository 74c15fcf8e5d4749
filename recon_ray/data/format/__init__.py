"""Prepared sets: schema, manifest, shards."""
