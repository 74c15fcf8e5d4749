"""Few-shot classification: one fine-tuning an episode."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from recon_ray.config.sections.common import Count
from recon_ray.sweeps.config import TrialSection, refuse_workers
from recon_ray.tasks.classify.config import FinetuneConfig

Number = Annotated[int, Field(ge=0)]


class FewshotSection(TrialSection):
    """Episodes that are run."""

    way: Count | tuple[Count, ...] = Field(
        (5, 10), description="Classes of an episode; one number or a list."
    )
    shot: Count | tuple[Count, ...] = Field(
        (10, 20), description="Training shapes of a class; one number or a list."
    )
    folds: Count | tuple[Number, ...] = Field(
        10, description="Number of folds, or a list of single ones, from 0: [3]."
    )

    @property
    def episodes(self) -> list[tuple[int, int, int]]:
        """Every (way, shot, fold) that is asked for."""
        ways = (self.way,) if isinstance(self.way, int) else self.way
        shots = (self.shot,) if isinstance(self.shot, int) else self.shot
        folds = tuple(range(self.folds)) if isinstance(self.folds, int) else self.folds
        return [(way, shot, fold) for way in ways for shot in shots for fold in folds]

    @model_validator(mode="after")
    def _are_some(self) -> FewshotSection:
        episodes = self.episodes
        if not episodes:
            raise ValueError("way, shot or folds is empty; give numbers")
        if len({*episodes}) < len(episodes):
            raise ValueError("way, shot or folds has a number twice")
        return self


class FewshotConfig(FinetuneConfig):
    """jobs/fewshot.py: fine-tune on every few-shot episode, in parallel, and average."""

    fewshot: FewshotSection = Field(FewshotSection(), description="Which episodes are run.")

    @model_validator(mode="after")
    def _are_trials(self) -> FewshotConfig:
        refuse_workers(self, "fewshot.max_concurrent limits how many run at once")
        if self.data.episode is not None:
            raise ValueError(
                "data.episode is one episode of jobs/finetune.py; choose with fewshot.way, "
                "fewshot.shot and fewshot.folds"
            )
        if self.resume not in ("auto", "never"):
            raise ValueError(f"resume={self.resume}: expected auto or never for several episodes")
        return self
