"""Main function of ``jobs/retrieve.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from recon_ray.data.format.files import parquet_bytes, write_file
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError, DataError
from recon_ray.tasks.config_checks import check_patches, check_points, find_set
from recon_ray.tasks.driver import run_evaluation
from recon_ray.tasks.feature_extraction import open_embedder
from recon_ray.tasks.point_pipeline import evaluated_clouds
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.retrieve.config import RetrieveConfig
from recon_ray.tasks.retrieve.ranks import RECALLS
from recon_ray.tasks.retrieve.search import Query, RetrievalEvaluation
from recon_ray.tasks.retrieve.sides import (
    pictures_side,
    query_sides,
    read_queries,
    texts_side,
)
from recon_ray.tasks.run import Run
from recon_ray.tasks.split_checks import choose_splits
from recon_ray.tasks.start_weights import describe_weights

#: Table of the shapes that the queries have found.
FOUND = "retrieved.parquet"


def retrieve(job: Job[RetrieveConfig]) -> JobResult:
    """Measure the search in a set, or answer queries, and write ``result.json``."""
    config, place, weights, model = open_embedder(job.config)
    prepared = find_set("data.path", config.data.path)
    reads_all = bool(config.queries)
    config, read = choose_splits(config, prepared, "retrieval.splits", reads_all=reads_all)
    check_patches(config.data.num_points, model)
    check_points(prepared, config.data.num_points)
    queries = read_queries(config, model)
    if queries:
        texts, pictures = query_sides(config, weights, queries)
    else:
        texts = texts_side(config, prepared, weights)
        pictures = pictures_side(config, prepared, weights)
        if texts is None and pictures is None:
            raise ConfigError(
                f"data.path={prepared.path}: there are neither texts nor pictures that "
                f"{weights.source} has a projection for; prepare the set with prepare.views, or "
                "name the teacher"
            )
    count = 0 if texts is None else len(texts.texts)
    fits = ["weights, set and teachers fit, nothing was searched", read]
    if queries:
        fits += [f"{'queries':28}{len(queries):>20,}"]
    else:
        fits += [f"{'texts':28}{count:>20,}"]
        fits += [f"{'pictures':28}{'no' if pictures is None else 'yes':>20}"]

    def finish(run: Run, found: dict[str, Any]) -> JobResult:
        record = describe_weights(weights)
        if queries:
            return _finish_queries(run, config, prepared, queries, found, record, read)
        return _finish(run, config, prepared, found, record, read, texts=count)

    return run_evaluation(
        replace(job, config=config),
        partial(
            RetrievalEvaluation,
            weights=place,
            sizes=weights.sizes,
            batch_size=config.retrieval.batch_size,
            options=config.retrieval,
            choice=evaluated_clouds(config, prepared, weights).test(),
            texts=texts,
            pictures=pictures,
            queries=queries,
            limit=config.data.limit,
        ),
        prepared,
        config.retrieval.splits,
        fits="\n".join(fits),
        verify=config.data.verify,
        finish=finish,
    )


def _finish(
    run: Run,
    config: RetrieveConfig,
    prepared: PreparedSet,
    found: dict[str, Any],
    weights: dict[str, Any],
    read: str,
    *,
    texts: int,
) -> JobResult:
    directions: dict[str, dict[str, float]] = found["directions"]
    if not directions:
        raise DataError(
            f"{prepared.path}: none of the shapes that were read has a text or a picture; raise "
            "data.limit, or choose other retrieval.splits"
        )
    sizes = {
        name: {key: int(values.pop(key)) for key in ("queries", "gallery")}
        for name, values in directions.items()
    }
    metrics = {f"{name}_{k}": v for name, values in directions.items() for k, v in values.items()}
    what = "class" if config.retrieval.texts == "category" else "caption"
    right = {
        "text": f"any shape of the same {what} text is right",
        "image": "the first picture of each shape, and only that shape is right",
    }
    used = [side for side in right if any(side in name for name in directions)]
    return run.finish(
        metrics,
        table=f"{read}\n{_table(directions, sizes)}",
        selection=f"{read}; nothing chosen on them; "
        + "; ".join(f"{side}: {right[side]}" for side in used)
        + "; wrong ones of equal cosine come first",
        counts={**_counts(config, found), "texts": texts, "directions": sizes},
        prepared=prepared,
        teacher=_teachers(config),
        weights=weights,
    )


def _counts(config: RetrieveConfig, found: dict[str, Any]) -> dict[str, Any]:
    workers = config.cluster.max_workers
    return {**found["counts"], "shapes": found["shapes"], "workers": workers}


def _teachers(config: RetrieveConfig) -> dict[str, str | None]:
    return {"image": config.teacher.image.name, "text": config.teacher.text.name}


def _table(directions: dict[str, dict[str, float]], sizes: dict[str, dict[str, int]]) -> str:
    names = [f"R@{k}" for k in RECALLS]
    head = f"{'':22}{'queries':>9}{'among':>9}" + "".join(f"{name:>9}" for name in names)
    lines = [f"{head}{'median rank':>13}"]
    for direction, values in directions.items():
        size = sizes[direction]
        for title, recall, median in (
            (direction.replace("_", " "), "recall_at", "median_rank"),
            ("  chance", "chance_at", "chance_median_rank"),
        ):
            counted = f"{size['queries']:>9,}{size['gallery']:>9,}" if recall != "chance_at" else ""
            shown = "".join(f"{values[f'{recall}_{k}']:>9.1%}" for k in RECALLS)
            lines.append(f"{title:22}{counted:18}{shown}{values[median]:>13g}")
    return "\n".join(lines)


def _finish_queries(
    run: Run,
    config: RetrieveConfig,
    prepared: PreparedSet,
    queries: Sequence[Query],
    found: dict[str, Any],
    weights: dict[str, Any],
    read: str,
) -> JobResult:
    names = ["object_id", "category", "caption"]
    known: dict[int, dict[str, Any]] = {}
    for split in config.retrieval.splits:
        for row in prepared.read(split, columns=names).to_pylist():
            known[row["sample_id"]] = {**row, "split": split}
    rows = [
        {"query": query.text, "kind": query.kind, "rank": rank, **hit, **known[hit["sample_id"]]}
        for query, hits in zip(queries, found["found"], strict=True)
        for rank, hit in enumerate(hits, start=1)
    ]
    path = run.folder.local / FOUND
    write_file(path, parquet_bytes(pa.Table.from_pylist(rows)))
    lines = [read, f"{'':>5}{'cosine':>9}  {'sample':>8}  {'category':16}object"]
    for query in queries:
        lines.append(f"{query.kind}: {query.text}")
        lines += [
            f"{row['rank']:>4}.{row['cosine']:>9.3f}  {row['sample_id']:>8}  "
            f"{row['category']:16}{row['object_id']}"
            for row in rows
            if row["query"] == query.text
        ]
    return run.finish(
        {"cosine_first": max(row["cosine"] for row in rows), "shapes": float(found["shapes"])},
        table="\n".join(lines),
        selection=f"{read}; of these the {config.retrieval.top_k} of the highest cosine; words: "
        "text space, pictures: image space, shapes: mean over the spaces",
        counts={**_counts(config, found), "queries": len(queries)},
        found=rows,
        table_file=FOUND,
        prepared=prepared,
        teacher=_teachers(config),
        weights=weights,
    )
