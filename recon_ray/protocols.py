"""Differences of the two protocols: one named flag each, resolved once.

``reference`` repeats the published code, ``sound`` is the default; the README has a table of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

ProtocolName = Literal["sound", "reference"]


@dataclass(frozen=True)
class ProtocolFlags:
    """Published habits that a job repeats: all of them under ``reference``, none under ``sound``.

    Attributes:
        extra_epoch: Train epochs 0..``train.epochs``, one more than stated (not in segmentation).
        lagging_rate: Learning rate of the epoch before, constant within an epoch.
        validates_epoch_zero: Validate after epochs 0, n, 2n, ... instead of n, 2n, ... epochs.
        skips_origin: Sampling skips points within 0.03 of the origin.
        fps_probe_points: Linear probes read the farthest points, not a random subset.
        torch_init: A model from scratch starts from torch's default weights.
        single_group_head: A two-tower classifier has no head group with ten times the rate.
        drops_first_patches: The maximum over a two-tower classifier's patches leaves out two.
        selects_on_test: The epoch that counts is the best one on the test split.
        published_num_points: Only the numbers of points that the published loaders know.
        best_vote: The best round of voting is reported, not the mean.
        resamples_zeroshot: Zero-shot reads the farthest candidates, then random ones of them.
        drops_last_batch: Training shapes that fill no last batch are left out.
        dual_svm: The linear SVM solves the dual problem.
        validates_all_splits: Zero-shot validation in pre-training reads the training split too.
        published_texts: Class texts as published (``toile`` of ScanObjectNN).
        full_fewshot_head: A few-shot head has one output for each class of the whole set.
        repeats_points: Part segmentation scores points drawn with replacement.
        double_step: Part segmentation steps, clips, and steps again with the same gradient.
        keeps_initial_statistics: Batch norms average their batches with mean 0 and variance 1.
        published_pictures: A set's own pictures are those that the published reader saw.
        full_precision: ``runtime.precision=auto`` is float32 on GPUs too.
    """

    extra_epoch: bool
    lagging_rate: bool
    validates_epoch_zero: bool
    skips_origin: bool
    fps_probe_points: bool
    torch_init: bool
    single_group_head: bool
    drops_first_patches: bool
    selects_on_test: bool
    published_num_points: bool
    best_vote: bool
    resamples_zeroshot: bool
    drops_last_batch: bool
    dual_svm: bool
    validates_all_splits: bool
    published_texts: bool
    full_fewshot_head: bool
    repeats_points: bool
    double_step: bool
    keeps_initial_statistics: bool
    published_pictures: bool
    full_precision: bool

    @property
    def min_sq_norm(self) -> float:
        """Squared norm that a sampled point must exceed; every point does where it is negative."""
        return REFERENCE_SKIP if self.skips_origin else -1.0


#: The published furthest point sampling skips points with a squared norm up to this one.
REFERENCE_SKIP = 1e-3


SOUND = ProtocolFlags(*[False] * len(fields(ProtocolFlags)))
REFERENCE = ProtocolFlags(*[True] * len(fields(ProtocolFlags)))


def protocol_flags(name: ProtocolName) -> ProtocolFlags:
    """Return the flags of a protocol."""
    return REFERENCE if name == "reference" else SOUND
