"""Pre-train ReCon: ``python jobs/pretrain.py [CONFIG.yaml ...] [key=value ...]``."""

import sys
from pathlib import Path

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.pretrain.config import PretrainConfig

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(job: Job[PretrainConfig]) -> JobResult:
    from recon_ray.tasks.pretrain.job import pretrain  # torch and Ray load only when needed

    return pretrain(job)


if __name__ == "__main__":
    sys.exit(run_job("pretrain", PretrainConfig, main, default=DEFAULT))
