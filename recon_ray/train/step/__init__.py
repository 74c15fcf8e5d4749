"""One optimizer step: eager, compiled, captured as a CUDA graph."""
