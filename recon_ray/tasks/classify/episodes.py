"""Few-shot episodes for the jobs that learn them, with clouds that several trials share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from recon_ray.data.fewshot.episode_set import collect_clouds, episode_rows, make_episode
from recon_ray.data.format.files import read_json
from recon_ray.data.format.prepared import EPISODES_RECORD, PreparedSet, read_episodes
from recon_ray.errors import ConfigError, DataError
from recon_ray.storage import Place
from recon_ray.tasks.classify.config import FinetuneConfig


@dataclass(frozen=True)
class SharedClouds:
    """Episodes and their clouds, read once for all trials.

    Attributes:
        path: Set and folder of episodes that they were read from.
        episodes: Rows of the episodes.
        clouds: Rows of the clouds by split.
    """

    path: tuple[str, str]
    episodes: pa.Table
    clouds: dict[str, pa.Table]

    @property
    def count(self) -> int:
        """Clouds in all splits."""
        return sum(map(len, self.clouds.values()))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(sum(table.nbytes for table in self.clouds.values()))


_shared: list[SharedClouds] = []


@contextmanager
def shared_clouds(shared: object) -> Iterator[None]:
    """Let :func:`open_episode` take the clouds from here; anything else than clouds is ignored."""
    added = [shared] if isinstance(shared, SharedClouds) else []
    _shared.extend(added)
    try:
        yield
    finally:
        for one in added:
            _shared.remove(one)


def read_clouds(
    config: FinetuneConfig, prepared: PreparedSet, wanted: list[tuple[int, int, int]]
) -> SharedClouds:
    """Read the clouds of several episodes.

    Raises:
        ConfigError: If the folder of episodes is not there, or they are of another set.
        DataError: If an episode or a cloud is missing, or an episode is another one again.
    """
    folder = _folder(config)
    _check_match(folder, prepared)
    try:
        episodes = read_episodes(folder)
        parts = {episode: episode_rows(episodes, episode) for episode in wanted}
        _refuse_repeated(parts)
        rows = pa.concat_tables(parts.values())
    except DataError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise DataError(f"data.episodes={folder}: {reason}") from error
    return SharedClouds(_key(config), rows, collect_clouds(prepared, rows))


def open_episode(config: FinetuneConfig, prepared: PreparedSet) -> PreparedSet:
    """Return ``data.episode`` of a set as a set of its own; any other configuration's set as it is.

    Under protocol reference it has as many classes as the whole set, as the published head.

    Raises:
        ConfigError: If no episode of a set of episodes is named, the folder of episodes is not
            there, or they are of another set.
        DataError: If the episode or a cloud is missing.
    """
    episode = config.data.episode
    if episode is None:
        if "episodes" in prepared.manifest.get("tables", {}):
            raise ConfigError(
                f"data.path={prepared.path}: it holds the clouds of few-shot episodes, which "
                "together are no set; name one by data.episode=[way, shot, fold] with "
                "cluster.workers=0, or run them all with jobs/fewshot.py"
            )
        return prepared
    known = next((one for one in _shared if one.path == _key(config)), None)
    found = known or read_clouds(config, prepared, [episode])
    outputs = len(prepared.classes) if config.flags.full_fewshot_head else None
    return make_episode(prepared, found.episodes, episode, found.clouds, outputs=outputs)


def _refuse_repeated(episodes: dict[tuple[int, int, int], pa.Table]) -> None:
    """Refuse episodes of the same shapes in the same order: they count as independent runs."""
    first: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for episode, rows in episodes.items():
        own = rows.select(["split", "object_id", "label"]).to_pydict()
        earlier = first.setdefault(tuple(map(tuple, own.values())), episode)
        if earlier != episode:
            raise DataError(
                f"fold {episode[2]} of {episode[0]}-way {episode[1]}-shot has the same shapes in "
                f"the same order as fold {earlier[2]}; leave one of them out (fewshot.folds), or "
                "draw the episodes again"
            )


def _key(config: FinetuneConfig) -> tuple[str, str]:
    return str(Place.of(config.data.path)), str(_folder(config))


def _folder(config: FinetuneConfig) -> Place:
    given = config.data.episodes or config.data.path
    folder = Place.of(given)
    if not folder.is_dir():
        raise ConfigError(
            f"data.episodes={given}: no such folder; make episodes with jobs/prepare.py "
            "source=fewshot"
        )
    return folder


def _check_match(folder: Place, prepared: PreparedSet) -> None:
    """Refuse episodes that were drawn from another set."""
    record = read_json(folder / EPISODES_RECORD)
    if not isinstance(record, dict):
        return
    drawn_from = record.get("manifest_sha256")
    if drawn_from != prepared.manifest_hash:
        raise ConfigError(
            f"data.episodes={folder}: were drawn from another set than data.path={prepared.path} "
            "(its manifest has another hash); give that set, or draw the episodes again"
        )
