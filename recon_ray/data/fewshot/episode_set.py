"""A few-shot episode as a prepared set of its own, with its clouds in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recon_ray.data.fewshot.draw import EPISODE_KEYS
from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.sources.cards import CARDS, as_record
from recon_ray.errors import DataError

#: Columns of a cloud that a classifier and the look-up of episodes need.
COLUMNS = ("sample_id", "object_id", "points", "label")


@dataclass(frozen=True)
class EpisodeSet(PreparedSet):
    """An episode: its own classes and labels, the clouds of another set.

    Attributes:
        tables: Rows by split.
    """

    tables: dict[str, pa.Table] = field(default_factory=dict)

    def parts(self, split: Split, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the split, which is in memory."""
        yield self.read(split, columns)

    def _rows(
        self, split: Split, names: list[str] | None, *, views: bool, features: bool
    ) -> pa.Table:
        del views, features  # it has points and labels only
        table = self.tables[split.name]
        return table if names is None else table.select(names)


def episode_rows(episodes: pa.Table, episode: tuple[int, int, int]) -> pa.Table:
    """Return the rows of one (way, shot, fold).

    Raises:
        DataError: If it is not among them.
    """
    way, shot, fold = episode
    wanted = (pc.field("way") == way) & (pc.field("shot") == shot) & (pc.field("fold") == fold)
    rows = episodes.filter(wanted)
    if not len(rows):
        have = sorted({*zip(*(episodes[key].to_pylist() for key in EPISODE_KEYS), strict=True)})
        shown = ", ".join("/".join(map(str, key)) for key in have[:3])
        raise DataError(
            f"there is no episode of way {way}, shot {shot}, fold {fold}; there are {len(have)}: "
            f"{shown}, ..."
        )
    return rows


def collect_clouds(prepared: PreparedSet, episodes: pa.Table) -> dict[str, pa.Table]:
    """Read the clouds that the rows of episodes use, file by file, and nothing else.

    Returns:
        Split name to rows of :data:`COLUMNS`.

    Raises:
        DataError: If the set lacks one of them.
    """
    clouds = {}
    for split in sorted({*episodes["split"].to_pylist()}):
        mine = episodes.filter(pc.equal(episodes["split"], split))
        wanted = pc.unique(mine["object_id"])
        parts = []
        for path in prepared.split(split).geometry:
            table = read_table(path, list(COLUMNS))
            is_wanted = pc.is_in(table["object_id"], value_set=wanted).to_numpy()
            parts.append(table.take(pa.array(np.flatnonzero(is_wanted))))
        clouds[split] = pa.concat_tables(parts).combine_chunks()
        if missing := {*wanted.to_pylist()} - {*clouds[split]["object_id"].to_pylist()}:
            raise DataError(
                f"{prepared.path}: {len(missing)} shapes of the episodes are not in its split "
                f"{split!r} ({min(missing)}); give the set that they were drawn from"
            )
    return clouds


def make_episode(
    prepared: PreparedSet,
    episodes: pa.Table,
    episode: tuple[int, int, int],
    clouds: dict[str, pa.Table],
    *,
    outputs: int | None = None,
) -> EpisodeSet:
    """Return one episode as a prepared set.

    Args:
        prepared: The set that the clouds are of.
        episodes: Rows of all episodes.
        episode: Way, shot and fold.
        clouds: Result of :func:`collect_clouds` for at least this episode.
        outputs: Number of classes of the set; by default that of the episode. The published runs
            give the classifier the 40 outputs of ModelNet40.

    Raises:
        DataError: If there is no such episode.
    """
    rows = episode_rows(episodes, episode)
    tables: dict[str, pa.Table] = {}
    names: dict[int, str] = {}
    for split, table in clouds.items():
        mine = rows.filter(pc.equal(rows["split"], split))
        place = {name: i for i, name in enumerate(table["object_id"].to_pylist())}
        chosen = table.take(pa.array([place[name] for name in mine["object_id"].to_pylist()]))
        labels, own = mine["label"].to_pylist(), chosen["label"].to_pylist()
        names |= {new: prepared.classes[old] for new, old in zip(labels, own, strict=True)}
        at, kind = chosen.schema.get_field_index("label"), chosen.schema.field("label")
        tables[split] = chosen.set_column(at, kind, pa.array(labels, kind.type))
    count = max(episode[0], outputs or 0)
    classes = [names.get(label, f"unused {label}") for label in range(count)]
    splits = {
        name: Split(name, len(table), 0, len(table), (), (), np.zeros(0, np.int64))
        for name, table in tables.items()
    }
    manifest = _manifest(prepared, classes, tables)
    return EpisodeSet(prepared.path, manifest, prepared.manifest_hash, splits, tables)


def _manifest(
    prepared: PreparedSet, classes: list[str], tables: dict[str, pa.Table]
) -> dict[str, Any]:
    """Return the set's manifest with the episode's classes and the card of few-shot episodes."""
    manifest = copy.deepcopy(prepared.manifest)
    card = manifest.get("card")
    if card is not None and str(card["name"]).startswith("modelnet"):
        title = f"{card['title']} few-shot episodes"
        manifest["card"] = {**as_record(CARDS["fewshot"]), "title": title}
    rows = sum(map(len, tables.values()))
    return {**manifest, "classes": classes, "rows": rows, "views": None, "features": None}
