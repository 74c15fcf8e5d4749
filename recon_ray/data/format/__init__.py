"""Format of prepared sets: schema, manifest, files, verification."""
