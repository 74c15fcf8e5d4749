"""Jobs by name: ``python -m recon_ray JOB [CONFIG.yaml ...] [key=value ...]``."""

import sys

from recon_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
