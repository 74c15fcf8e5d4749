"""The paper's tables, run row by row and compared with the published numbers."""
