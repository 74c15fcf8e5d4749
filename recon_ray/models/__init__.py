"""Networks: the student models, their parts, and the frozen teachers."""
