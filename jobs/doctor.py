"""Look a machine or a cluster over: ``python jobs/doctor.py [run.storage=...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.doctor.config import DoctorConfig


def main(job: Job[DoctorConfig]) -> JobResult:
    from recon_ray.doctor.job import doctor  # torch and Ray load only when needed

    return doctor(job)


if __name__ == "__main__":
    sys.exit(run_job("doctor", DoctorConfig, main))
