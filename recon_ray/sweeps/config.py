"""Many runs of one job: search spaces and seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from recon_ray.config.sections.common import Count, JobConfig, NonNegative, Positive, Section
from recon_ray.sweeps.search_space import is_drawn, parse_space
from recon_ray.tasks.registry import swept_jobs


class TrialSection(Section):
    """Reservation of a trial, and number of trials at once."""

    cpus_per_trial: Positive = Field(1.0, description="Logical CPUs that a trial reserves.")
    gpus_per_trial: NonNegative | None = Field(
        None,
        description="GPUs that a trial reserves; 0.25 puts four on one. By default 1 if the "
        "cluster has any.",
    )
    max_concurrent: Count | None = Field(
        None, description="Most trials at once; by default as many as fit the cluster."
    )


class SweepSection(TrialSection):
    """Search space, search, early stopping and comparison of trials."""

    space: dict[str, Any] = Field(
        {},
        description="Dotted key of an option to grid, choice, uniform, loguniform or randint with "
        "its list of values or [low, high], both included: optim.lr: {loguniform: [1e-5, 1e-3]}.",
    )
    samples: Count = Field(
        1,
        description="Draws of what is not a grid; every point of the grids runs for each. What "
        "was drawn before is not run again; optuna draws something else in its place.",
    )
    seeds: Count = Field(1, description="Runs of every configuration: a grid over run.seed.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    search: Literal["random", "optuna"] = Field(
        "random",
        description="How values are drawn: at random, or by Optuna's TPE from the trials before "
        "(pip install 'recon-ray[search]').",
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        "none",
        description="Stop trials early that lag behind the others; never used for seeds, of which "
        "it would bias mean and deviation.",
    )
    grace_epochs: Count | None = Field(
        None,
        description="Epochs before which no trial is stopped; by default the warm-up and a quarter "
        "of train.epochs. One at its last epoch never is.",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3,
        description="asha continues one of this many trials at every rung: after grace_epochs, "
        "this many times as many, and so on.",
    )
    metric: str | None = Field(
        None,
        description="Number of result.json that compares trials; by default that of the job "
        "(accuracy, zeroshot_accuracy, instance_miou, probe_full_after).",
    )
    mode: Literal["max", "min"] = Field("max", description="Whether more or less of it is better.")
    watch: str = Field(
        "val/accuracy",
        description="Record of metrics.jsonl by which the scheduler compares running trials.",
    )
    watch_mode: Literal["max", "min"] = Field(
        "max", description="Whether more or less of that is better."
    )

    @property
    def is_stopping(self) -> bool:
        """Return whether trials are stopped early."""
        return self.scheduler != "none"

    @field_validator("space")
    @classmethod
    def _are_domains(cls, space: dict[str, Any]) -> dict[str, Any]:
        parse_space(space)
        return space

    @model_validator(mode="after")
    def _fits_together(self) -> SweepSection:
        is_drawn_from, is_optuna = is_drawn(parse_space(self.space)), self.search == "optuna"
        is_repeated = self.seeds > 1 or "run.seed" in self.space
        refused = {
            "nothing is varied; give sweep.space={optim.lr: {grid: [1e-4, 1e-3]}} or sweep.seeds=8 "
            "for example": not self.space and self.seeds == 1,
            f"samples={self.samples}, but space draws nothing, all of it is grids; leave it out, "
            "or set sweep.seeds for repetitions": self.samples > 1 and not is_drawn_from,
            "search=optuna, but space draws nothing, all of it is grids": (
                is_optuna and not is_drawn_from
            ),
            f"scheduler={self.scheduler} stops trials, which biases mean and deviation over seeds; "
            "search without seeds first, then run seeds with sweep.scheduler=none": (
                self.is_stopping and is_repeated
            ),
            "search=optuna proposes configurations, not seeds; search first, then run seeds with "
            "sweep.search=random": is_optuna and is_repeated,
        }
        for message, is_wrong in refused.items():
            if is_wrong:
                raise ValueError(message)
        return self


class SweepConfig(JobConfig):
    """jobs/sweep.py: many runs of one job in parallel, compared in tables and a report."""

    resume: Literal["auto", "never"] = Field(
        "auto",
        description="auto continues the sweep of this name with the trials that are not done, "
        "never sets it aside.",
    )
    job: str = Field(
        "finetune", description=f"The job that every trial runs: {', '.join(swept_jobs())}."
    )
    config: dict[str, Any] = Field(
        {},
        description="The job's own options, as in its YAML files; include: [file] reads such files "
        "first. Dotted keys change single options: config.optim.lr=1e-4.",
    )
    sweep: SweepSection = Field(description="What is varied and how trials are compared.")

    @field_validator("job")
    @classmethod
    def _can_be_swept(cls, job: str) -> str:
        if job not in swept_jobs():
            raise ValueError(f"expected one of {', '.join(swept_jobs())}, found {job!r}")
        return job

    @model_validator(mode="after")
    def _has_no_workers_of_its_own(self) -> SweepConfig:
        refuse_workers(self, "config.cluster.workers gives each trial several")
        return self


def refuse_workers(config: JobConfig, instead: str) -> None:
    """Refuse data-parallel workers of a job whose workers are its trials.

    Raises:
        ValueError: If there are several.
    """
    if config.cluster.workers not in (0, 1):
        raise ValueError(
            f"cluster.workers={config.cluster.workers}: the trials are the workers here; leave it "
            f"out (0 runs them in this process, one after another); {instead}"
        )
