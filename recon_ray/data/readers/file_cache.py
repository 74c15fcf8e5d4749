"""Keeps the content of a few big files, so that their rows can be read one by one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Content = TypeVar("Content")
BUDGET_BYTES = 512 << 20


class RecentFiles(Generic[Content]):
    """The files that were read last, in this process.

    At least two are kept, whatever their size, and more while they fit the budget: some data sets
    come in one file a split, others in many small ones, and rows are asked for in a mixed order.
    """

    def __init__(
        self,
        read: Callable[[Path], Content],
        *,
        at_least: int = 2,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        """Keep what ``read`` gives of a file.

        Args:
            read: Reads a whole file.
            at_least: Files kept even if they are larger than the budget.
            budget_bytes: Size on disk of the files kept beyond that.
        """
        self._read = read
        self._at_least = at_least
        self._budget_bytes = budget_bytes
        self._contents: OrderedDict[tuple[str, int, int], Content] = OrderedDict()

    def get(self, path: Path) -> Content:
        """Return the content of a file, read again only if it was changed or dropped.

        Raises:
            DataError: If the file is missing, or cannot be read.
        """
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: file not found") from error
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._contents:
            self._make_room(found.st_size)
            self._contents[key] = self._read(path)
        self._contents.move_to_end(key)
        return self._contents[key]

    def _make_room(self, size_bytes: int) -> None:
        while len(self._contents) >= self._at_least:
            kept = sum(size for _, size, _ in self._contents)
            if kept + size_bytes <= self._budget_bytes:
                return
            self._contents.popitem(last=False)
