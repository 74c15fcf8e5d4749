"""Plan of the shards of a set: a function of the listing, the options and the schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args, overload

import numpy as np

from recon_ray.data.format.files import parquet_bytes
from recon_ray.data.format.schema import POINT_DTYPES, Layout
from recon_ray.data.prepare.render import Fit, Style, renderer
from recon_ray.data.readers.meshes import sample_generator
from recon_ray.data.sources.base import SPLIT_ORDER, Features, Item, Listing, Source
from recon_ray.data.sources.items import Items
from recon_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recon_ray.data.format.prepared import PreparedSet

Setting = str | int | float | bool | None
# Raising the tolerated fraction must not throw finished shards away: it decides nothing in them.
NOT_IN_PLAN = ("max_quarantine_fraction",)
#: Version of the rows' content. The way in which files store them may change: both are read, and
#: finished shards of an interrupted set stay.
COLUMNS_VERSION = 1


@dataclass(frozen=True)
class PrepareOptions:
    """Options of the conversion of samples to rows.

    Attributes:
        num_points: N, points of every sample; None for the source's number.
        up_axis: The axis that points up in the source; None for that of its listing.
        sampling: How a larger cloud is thinned: ``random``, ``fps``, or ``auto`` for the source's
            way. Points of meshes are always drawn at random, by area.
        views: Rendered pictures of every sample, 0 for none; a source's own pictures replace them.
        view_style: How they are rendered, see :func:`recon_ray.data.prepare.render.render_views`.
        image_size: Side of the pictures in pixels.
        image_fit: How a source's own pictures become squares, see
            :func:`recon_ray.data.prepare.render.load_image`.
        image_format: png or jpeg.
        samples_per_shard: Rows of a file.
        seed: Seed of the points and of the order of the samples.
        limit: Most samples, shared by the splits in proportion; None for all.
        max_quarantine_fraction: Tolerated fraction of unreadable samples.
        points_dtype: float32, or float16, for which every cloud is centred and scaled to the unit
            sphere because raw coordinates may exceed its range.
        colors: Keep a color for every point (gray where the source has none).
        normals: Keep a normal for every point.
    """

    num_points: int | None = None
    up_axis: str | None = None
    sampling: Literal["auto", "random", "fps"] = "auto"
    views: int = 0
    view_style: Style = "auto"
    image_size: int = 224
    image_fit: Fit = "pad"
    image_format: Literal["png", "jpeg"] = "png"
    samples_per_shard: int = 512
    seed: int = 0
    limit: int | None = None
    max_quarantine_fraction: float = 0.01
    points_dtype: Literal["float32", "float16"] = "float32"
    colors: bool = False
    normals: bool = False

    def __post_init__(self) -> None:
        at_least = {"num_points": 2, "views": 0, "image_size": 8}
        at_least |= {"samples_per_shard": 1, "limit": 1}
        for name, lowest in at_least.items():
            found = getattr(self, name)
            if found is not None and found < lowest:
                raise ConfigError(f"prepare.{name}: expected at least {lowest}, found {found}")
        choices = {
            "up_axis": (None, "x", "y", "z"),
            "sampling": ("auto", "random", "fps"),
            "view_style": get_args(Style),
            "image_fit": get_args(Fit),
            "image_format": ("png", "jpeg"),
            "points_dtype": POINT_DTYPES,
        }
        for name, known in choices.items():
            if (found := getattr(self, name)) not in known:
                names = ", ".join(name for name in known if name)
                raise ConfigError(f"prepare.{name}: expected {names}, found {found!r}")
        if not 0 <= (found := self.max_quarantine_fraction) <= 1:
            raise ConfigError(f"prepare.max_quarantine_fraction: expected 0 to 1, found {found}")

    def for_listing(self, listing: Listing) -> PrepareOptions:
        """Return the options with the source's values in place of the defaults.

        Raises:
            ConfigError: If an option contradicts the source.
        """
        if self.limit is not None and listing.tables:
            raise ConfigError(
                f"prepare.limit={self.limit}: the {' and '.join(listing.tables)} of this source "
                "name every sample; leave the option out"
            )
        return replace(
            self,
            num_points=listing.num_points if self.num_points is None else self.num_points,
            up_axis=listing.up_axis if self.up_axis is None else self.up_axis,
            sampling=listing.sampling if self.sampling == "auto" else self.sampling,
        )


@dataclass(frozen=True)
class ShardTask:
    """All inputs of one shard; picklable.

    Attributes:
        root: Folder of the prepared set.
        split: Name of the split.
        name: File name of the shard, in ``geometry/<split>`` and ``views/<split>``.
        key: Hash of the plan and the shard; a record with another key is not this shard's.
        first_sample_id: Id of the first item; the others follow.
        items: The samples in row order.
        source: Loads them.
        options: The options with the source's values filled in.
        layout: Columns of the files.
        held_bytes: Memory that the source needs in the process, see :class:`Listing`.
        number: Its place among the shards of the set.
    """

    root: str
    split: str
    name: str
    key: str
    first_sample_id: int
    items: tuple[Item, ...]
    source: Source
    options: PrepareOptions
    layout: Layout
    held_bytes: int = 0
    number: int = 0


@dataclass(frozen=True)
class ShardTasks(Sequence[ShardTask]):
    """The shards of a set in the order of their sample ids; a task is made when it is asked for.

    Attributes:
        root: Folder of the prepared set.
        plan: Hash of the plan.
        items: The samples of the source.
        order: Split to the items of its rows, (R,) int64.
        source: Loads them.
        options: The options with the source's values filled in.
        layout: Columns of the files.
        held_bytes: Memory that the source needs in a process.
        version: Version of the set that the shards make.
        first_id: Sample id of the first of them.
    """

    root: str
    plan: str
    items: Items
    order: Mapping[str, np.ndarray]
    source: Source
    options: PrepareOptions
    layout: Layout
    held_bytes: int = 0
    version: int = 1
    first_id: int = 0

    @property
    def prefix(self) -> str:
        """Beginning of the names of the files: those of each version have another one."""
        return "part-" if self.version == 1 else f"v{self.version}-part-"

    def names(self) -> Iterator[tuple[str, str]]:
        """Return split and file name of every shard."""
        for split, total in self.counts.items():
            for index in range(total):
                yield split, f"{self.prefix}{index:05d}-of-{total:05d}.parquet"

    @property
    def counts(self) -> dict[str, int]:
        """Shards of every split."""
        size = self.options.samples_per_shard
        return {split: -(-len(rows) // size) for split, rows in self.order.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    @overload
    def __getitem__(self, index: int) -> ShardTask: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShardTask]: ...

    def __getitem__(self, index: int | slice) -> ShardTask | list[ShardTask]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        left, first_id, size = number, self.first_id, self.options.samples_per_shard
        for split, total in self.counts.items():
            if left < total:
                break
            left -= total
            first_id += len(self.order[split])
        name = f"{self.prefix}{left:05d}-of-{total:05d}.parquet"
        rows = self.order[split][left * size : (left + 1) * size]
        return ShardTask(
            self.root,
            split,
            name,
            _hash({"plan": self.plan, "shard": f"{split}/{name}"}),
            first_id + left * size,
            tuple(self.items.take(rows)),
            self.source,
            self.options,
            self.layout,
            self.held_bytes,
            number,
        )

    def number_of(self, split: str, name: str) -> int | None:
        """Return the number of the shard with a file name; None for other names."""
        first, index = 0, re.match(rf"{self.prefix}(\d+)-of-", name)
        for other, total in self.counts.items():
            if other == split and index and int(index[1]) < total:
                number = int(index[1])
                is_its_name = name == f"{self.prefix}{number:05d}-of-{total:05d}.parquet"
                return first + number if is_its_name else None
            first += total
        return None


@dataclass(frozen=True)
class ChosenTasks(Sequence[ShardTask]):
    """Some of the shards of a set."""

    tasks: ShardTasks
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> ShardTask: ...

    @overload
    def __getitem__(self, index: slice) -> ChosenTasks: ...

    def __getitem__(self, index: int | slice) -> ShardTask | ChosenTasks:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        return self.tasks[int(self.numbers[index])]


@dataclass(frozen=True)
class Plan:
    """The shards of a set.

    Attributes:
        settings: Everything on which the content depends, as flat names and values.
        hash: Hash of the settings.
        source_name: Name of the source.
        listing: What the source says of its samples, which are in ``items``.
        items: The samples of the source.
        options: The options with the source's values filled in.
        layout: Columns of the files.
        tasks: The shards.
        repaired: Planned and present size of the files that changed after they were left out, by
            object id.
    """

    settings: Mapping[str, Setting]
    hash: str
    source_name: str
    listing: Listing
    items: Items
    options: PrepareOptions
    layout: Layout
    tasks: ShardTasks
    repaired: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Planned samples of all splits."""
        return sum(map(len, self.tasks.order.values()))


def make_plan(
    source: Source, root: str, options: PrepareOptions, *, after: PreparedSet | None = None
) -> Plan:
    """Scan the source and assign its samples to shards of the prepared set at ``root``.

    Args:
        source: Lists and loads the samples.
        root: Folder or URI of the set.
        options: How samples become rows.
        after: The set that they are appended to. Its classes keep their labels; new ones follow.

    Samples are shuffled within their split, by the seed, unless the source gives them an order:
    sources list them by category, and training shuffles only within a window later.

    Raises:
        ConfigError: If an option contradicts the source.
        DataError: If the source lists no samples, or an object twice.
    """
    listing = source.scan()
    items = Items.of(listing.items)
    _check_items(items)
    if after is None:
        return _assign(source, root, listing, items, options)
    known = after.classes
    classes = (*known, *(name for name in listing.classes if name not in known))
    place = {name: label for label, name in enumerate(classes)}
    items = items.relabeled(np.array([place[name] for name in listing.classes], np.int32))
    plan = _assign(source, root, replace(listing, classes=classes), items, options)
    first = max(s.first_sample_id + s.planned for s in after.splits.values())
    return replace(plan, tasks=replace(plan.tasks, version=after.version + 1, first_id=first))


def with_sizes(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """Return the plan for other sizes by object id; the present ones are kept in ``repaired``."""
    items, repaired = plan.items.with_sizes(sizes)
    tasks = plan.tasks
    again = _assign(tasks.source, tasks.root, plan.listing, items, plan.options)
    same = replace(again.tasks, version=tasks.version, first_id=tasks.first_id)
    return replace(again, tasks=same, repaired=repaired)


def _assign(
    source: Source, root: str, listing: Listing, items: Items, options: PrepareOptions
) -> Plan:
    options = options.for_listing(listing)
    layout = _layout(listing, options)
    settings = _settings(source, listing, items, options)
    plan_hash = _hash(settings)
    order = _ordered_splits(listing, items, options)
    tasks = ShardTasks(root, plan_hash, items, order, source, options, layout, listing.held_bytes)
    listing = replace(listing, items=())  # they are in the columns
    return Plan(settings, plan_hash, source.name, listing, items, options, layout, tasks)


def differences(found: Mapping[str, Setting], asked: Mapping[str, Setting]) -> str:
    """Describe the first three settings in which two plans differ."""
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    # A changed option changes the listing's hash too, which would not help the user.
    named = [key for key in keys if key != "source.listing"] or keys
    shown = [f"{key}: {found.get(key)} (found) / {asked.get(key)} (asked)" for key in named[:3]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return "; ".join(shown) + more


def _check_items(items: Items) -> None:
    if not len(items):
        raise DataError("the source has no samples")
    if (same := items.repeated()) is not None:
        raise DataError(
            f"object id {same[0].object_id!r} is used twice, by {same[0].file} and "
            f"{same[1].file}; give each its own"
        )


def _layout(listing: Listing, options: PrepareOptions) -> Layout:
    features = listing.features or Features()
    return Layout(
        options.num_points or 0,
        options.points_dtype,
        normals=options.normals,
        colors=options.colors,
        part_labels=listing.part_labels,
        valid_points=listing.keeps_all_points,
        views=options.views > 0,
        image_features=features.image,
        text_features=features.text,
    )


def _settings(
    source: Source, listing: Listing, items: Items, options: PrepareOptions
) -> dict[str, Setting]:
    chosen = {k: v for k, v in asdict(options).items() if k not in NOT_IN_PLAN}
    if chosen["image_fit"] == "pad":  # as in sets that were begun before there was a choice
        del chosen["image_fit"]
    settings: dict[str, Setting] = {"schema_version": COLUMNS_VERSION, "source": source.name}
    settings |= {f"source.{name}": value for name, value in listing.settings.items()}
    settings |= {f"prepare.{name}": value for name, value in chosen.items()}
    settings["source.samples"] = len(items)
    settings["source.listing"] = items.digest(listing.classes)
    for name, table in listing.tables.items():
        settings[f"source.{name}"] = hashlib.sha256(parquet_bytes(table)).hexdigest()
    if listing.features is not None:
        settings["source.features"] = json.dumps(asdict(listing.features))
    if options.views:
        settings["renderer"] = renderer()
    return settings


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ordered_splits(
    listing: Listing, items: Items, options: PrepareOptions
) -> dict[str, np.ndarray]:
    """Return the items of every split in the order of the rows, thinned to the limit."""
    found = items.splits()
    known = [name for name in SPLIT_ORDER if name in found]
    order = known + sorted(set(found) - set(known))
    keep = _limited([len(found[name]) for name in order], options.limit)
    splits = {}
    for split, count in zip(order, keep, strict=True):
        rows = found[split]
        if listing.shuffle:
            rows = items.by_object_id(rows)
            generator = sample_generator(options.seed, f"order of {split}")
            rows = rows[generator.permutation(len(rows))]
        if count:
            splits[split] = rows[:count]
    return splits


def _limited(counts: list[int], limit: int | None) -> list[int]:
    """Share ``limit`` among the splits in proportion to their sizes, by largest remainder."""
    if limit is None or limit >= sum(counts):
        return counts
    exact = np.array(counts) * (limit / sum(counts))
    kept = np.floor(exact).astype(int)
    left = limit - int(kept.sum())
    kept[np.argsort(kept - exact, kind="stable")[:left]] += 1
    return [int(k) for k in kept]
