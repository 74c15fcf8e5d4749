"""Pre-train ReCon: ``python jobs/pretrain.py [CONFIG.yaml ...] [key=value ...]``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("pretrain"))
