"""Pre-training: masked reconstruction and distillation from frozen teachers."""
