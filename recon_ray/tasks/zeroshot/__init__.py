"""Zero-shot classification by text."""
