"""Retrieval between modalities: ranks by cosine, recall, and recall by chance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recon_ray.train.metrics import gather_rows, is_distributed

#: Numbers of found items at which recall is measured.
RECALLS = (1, 5, 10)
#: Group of an item without a counterpart: it is found, but right for no query.
NO_GROUP = -1
#: Cosines that are held at once.
CELLS = 1 << 24


class Items(NamedTuple):
    """One side of a search.

    Attributes:
        features: (N, D); their length has no effect.
        groups: (N,) int64. An item is right for the queries of its group, see :data:`NO_GROUP`.
    """

    features: Tensor
    groups: Tensor


def first_ranks(queries: Items, gallery: Items, *, cells: int = CELLS) -> Tensor:
    """Return the rank of the best item of each query's group, from 1, after equal wrong items.

    Args:
        queries: Q queries, each with an item of its group in the gallery.
        gallery: G items.
        cells: Cosines that are held at once.

    Returns:
        (Q,) int64.
    """
    items = F.normalize(gallery.features.float(), dim=-1)
    ranks = []
    step = max(1, cells // max(len(items), 1))
    pairs = zip(queries.features.split(step), queries.groups.split(step), strict=True)
    for features, groups in pairs:
        cosines = F.normalize(features.float(), dim=-1) @ items.T  # (q, G)
        is_right = groups[:, None] == gallery.groups
        best = cosines.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((cosines >= best) & ~is_right).sum(dim=1))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def nearest(queries: Tensor, gallery: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (Q, count) highest cosines and their positions in the gallery, first ones on a tie."""
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(gallery.float(), dim=-1).T
    found = cosines.sort(dim=1, descending=True, stable=True)
    return found.values[:, :count], found.indices[:, :count]


def search_metrics(queries: Items, gallery: Items) -> dict[str, float]:
    """Search with every query that has a right answer; the workers share the queries.

    Returns:
        ``recall_at_<k>`` (fraction of the queries with a right item among the first k),
        ``median_rank`` (of the first right item), ``chance_at_<k>`` and ``chance_median_rank``
        (of a gallery in random order), ``queries`` and ``gallery`` (their numbers). Nothing where
        no query has a right answer.
    """
    right = right_items(queries.groups, gallery.groups)
    asked, right = right > 0, right[right > 0]
    if not len(right):
        return {}
    queries = Items(queries.features[asked], queries.groups[asked])
    world = torch.distributed.get_world_size() if is_distributed() else 1
    rank = torch.distributed.get_rank() if is_distributed() else 0
    mine = Items(queries.features[rank::world], queries.groups[rank::world])
    ranks = gather_rows(first_ranks(mine, gallery).to(queries.features.device))
    size = len(gallery.groups)
    found = {f"recall_at_{k}": float((ranks <= k).double().mean()) for k in RECALLS}
    found["median_rank"] = float(ranks.double().quantile(0.5))
    right = right.cpu()
    found |= {f"chance_at_{k}": chance_recall(right, size, k) for k in RECALLS}
    found["chance_median_rank"] = float(chance_median_rank(right, size))
    return found | {"queries": float(len(right)), "gallery": float(size)}


def right_items(queries: Tensor, gallery: Tensor) -> Tensor:
    """Count the items of each query's group: (Q,) int64 of (Q,) and (G,) groups."""
    asked = queries != NO_GROUP
    if not len(gallery) or not asked.any():
        return torch.zeros_like(queries)
    size = int(torch.maximum(queries.max(), gallery.max())) + 1
    counts = gallery[gallery != NO_GROUP].bincount(minlength=size)
    return torch.where(asked, counts[queries.clamp_min(0)], 0)


def chance_recall(right: Tensor, size: int, k: int) -> float:
    """Return the mean probability that of k random items one is right.

    Args:
        right: (Q,) right items of each query, 1 or more.
        size: Items of the gallery.
        k: Items that are drawn, without replacement.
    """
    from scipy.stats import hypergeom  # type: ignore[import-untyped]

    return float((1 - hypergeom.pmf(0, size, right.numpy(), min(k, size))).mean())


def chance_median_rank(right: Tensor, size: int) -> int:
    """Return the smallest k at which half of the queries have a right item among k random ones."""
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        if chance_recall(right, size, middle) < 0.5 - 1e-9:
            low = middle + 1
        else:
            high = middle
    return low
