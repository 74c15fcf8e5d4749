"""The driver's side of each job: what ``jobs/*.py`` call."""
