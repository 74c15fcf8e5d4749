"""Find shapes by texts and pictures: ``python jobs/retrieve.py init_from=... [query=...]``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("retrieve"))
