"""Convert a data set to Parquet: ``python jobs/prepare.py source=custom input=... output=...``."""

import sys

from recon_ray.cli import Flag, Job, JobResult, run_job
from recon_ray.tasks.prepare.config import PrepareConfig


def main(job: Job[PrepareConfig]) -> JobResult:
    from recon_ray.tasks.prepare.job import prepare  # the readers of meshes load only when needed

    return prepare(job)


def cards(name: str | None) -> str:
    from recon_ray.tasks.prepare.job import show_cards

    return show_cards(name)


CARDS = Flag("describe the published data sets, or the one that is named, and stop", cards)

if __name__ == "__main__":
    sys.exit(run_job("prepare", PrepareConfig, main, flags={"--cards": CARDS}))
