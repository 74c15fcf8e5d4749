"""Configuration of the paper's whole table."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recon_ray.config.sections.common import Count, JobConfig, Location, Section
from recon_ray.sweeps.config import TrialSection, refuse_workers

Options = dict[str, Any] | None


class PublishedSetSection(Section):
    """One published set as it was prepared, or what stands in for it."""

    path: Location | None = Field(
        None, description="Folder of the prepared set; null where none is."
    )
    stand_in: bool | None = Field(
        None,
        description="Whether it stands in for the published set, which the table then states; null "
        "goes by the card that the set was prepared with.",
    )


def _set(name: str, description: str) -> Any:  # noqa: ANN401 - a field of pydantic
    return Field(PublishedSetSection(path=f"datasets/{name}"), description=description)


class SetsSection(Section):
    """Places of the prepared sets, which go into every row that is measured on them."""

    modelnet10: PublishedSetSection = _set("modelnet10", "ModelNet10.")
    modelnet40: PublishedSetSection = _set("modelnet40", "ModelNet40, with 8,192 points.")
    scanobjectnn_obj_bg: PublishedSetSection = _set("scanobjectnn_obj_bg", "ScanObjectNN OBJ_BG.")
    scanobjectnn_obj_only: PublishedSetSection = _set(
        "scanobjectnn_obj_only", "ScanObjectNN OBJ_ONLY."
    )
    scanobjectnn_pb_t50_rs: PublishedSetSection = _set(
        "scanobjectnn_pb_t50_rs", "ScanObjectNN PB_T50_RS."
    )
    shapenetpart: PublishedSetSection = _set("shapenetpart", "ShapeNetPart.")
    fewshot: PublishedSetSection = Field(
        PublishedSetSection(),
        description="Clouds of the few-shot episodes; by default those of ModelNet40.",
    )
    episodes: Location | None = Field(
        "datasets/episodes",
        description="Folder of the few-shot episodes; null where their set holds them.",
    )


class RowsSection(Section):
    """Options of the rows' jobs, as in their YAML files; null leaves a row out.

    ``include: [file]`` reads such files first, dotted keys change single options:
    ``rows.svm.probe.svm_c=0.1``. Weights, sets, seeds, folds and the section ``runtime`` are filled
    in.
    """

    obj_bg: Options = Field(None, description="Fine-tuning on ScanObjectNN OBJ_BG.")
    obj_only: Options = Field(None, description="Fine-tuning on ScanObjectNN OBJ_ONLY.")
    pb_t50_rs: Options = Field(None, description="Fine-tuning on ScanObjectNN PB_T50_RS.")
    modelnet40_1k: Options = Field(None, description="Fine-tuning on ModelNet40, 1,024 points.")
    modelnet40_8k: Options = Field(None, description="Fine-tuning on ModelNet40, 8,192 points.")
    voting: Options = Field(
        None, description="Evaluation by voting of every fine-tuned classifier of those five."
    )
    fewshot: Options = Field(None, description="The few-shot episodes of ModelNet40.")
    zeroshot_modelnet10: Options = Field(None, description="Zero-shot on ModelNet10.")
    zeroshot_modelnet40: Options = Field(None, description="Zero-shot on ModelNet40.")
    zeroshot_scanobjectnn: Options = Field(None, description="Zero-shot on ScanObjectNN OBJ_ONLY.")
    svm: Options = Field(None, description="Linear SVM on ModelNet40.")
    partseg: Options = Field(None, description="Part segmentation of ShapeNetPart.")


class ReproduceSection(TrialSection):
    """Rows, seeds and folds that are run."""

    seeds: Count | None = Field(
        None, description="Fine-tunings of each classification set; by default 8 as published."
    )
    folds: Count | None = Field(
        None, description="Folds of each few-shot setting; by default 10 as published."
    )
    rows: tuple[str, ...] | None = Field(
        None, description="Run these rows only; by default all that are configured."
    )

    @field_validator("rows")
    @classmethod
    def _are_rows(cls, rows: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = [name for name in rows or () if name not in RowsSection.model_fields]
        if unknown:
            raise ValueError(
                f"unknown row {unknown[0]!r}; choose one of {', '.join(RowsSection.model_fields)}"
            )
        return rows


class ReproduceConfig(JobConfig):
    """jobs/reproduce.py: the paper's whole table beside one's own numbers."""

    resume: Literal["auto", "never"] = Field(
        "auto",
        description="auto continues the table of this name with what is not done, never sets it "
        "aside.",
    )
    init_from: Location | None = Field(
        None,
        description="The pre-training that everything starts from: run folder, checkpoint, file or "
        "name of published weights; null pre-trains as the section pretrain says.",
    )
    zeroshot_from: Location | None = Field(
        None, description="Other weights for the zero-shot rows; by default those of init_from."
    )
    svm_from: Location | None = Field(
        None, description="Other weights for the linear SVM; by default those of init_from."
    )
    pretrain: Options = Field(
        None,
        description="Options of jobs/pretrain.py, as in its YAML files: the first step where "
        "init_from is null.",
    )
    sets: SetsSection = Field(SetsSection(), description="The prepared sets.")
    rows: RowsSection = Field(RowsSection(), description="What is run for the rows.")
    reproduce: ReproduceSection = Field(ReproduceSection(), description="How much is run.")

    @model_validator(mode="after")
    def _can_start(self) -> ReproduceConfig:
        if self.init_from is None and self.pretrain is None:
            raise ValueError(
                "init_from=<run folder or file of weights> must be given, or a section pretrain "
                "with the options of jobs/pretrain.py"
            )
        configured = [name for name in RowsSection.model_fields if getattr(self.rows, name)]
        absent = [name for name in self.reproduce.rows or () if name not in configured]
        if absent or not configured:
            name = absent[0] if absent else "modelnet40_1k"
            raise ValueError(
                f"rows.{name} is not configured; start from configs/reproduce/paper.yaml"
            )
        refuse_workers(self, "reproduce.max_concurrent limits how many run at once")
        return self
