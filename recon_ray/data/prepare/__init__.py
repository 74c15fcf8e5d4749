"""Preparation of sets: plan, shards, rendered views, sampled points."""
