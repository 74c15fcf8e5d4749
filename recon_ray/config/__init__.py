"""Configuration: YAML files and ``key=value`` arguments to one validated model."""
