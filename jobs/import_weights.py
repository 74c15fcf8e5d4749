"""Import or export weights: ``python jobs/import_weights.py input=A.pth output=B.safetensors``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("import_weights"))
