"""Everything that a user can do with a model, one folder a capability."""
