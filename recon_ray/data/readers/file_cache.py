"""Cache of a few big files whose rows are read one by one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Content = TypeVar("Content")
BUDGET_BYTES = 512 << 20  # size on disk of the files that are kept


class RecentFiles(Generic[Content]):
    """Contents of the files that this process read last.

    At least two are kept, whatever their size, and more while they fit the budget: some data sets
    have one file a split, others many small ones, and rows are read in a mixed order.

    Args:
        read: Reads a whole file.
    """

    def __init__(self, read: Callable[[Path], Content]) -> None:
        self._read = read
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
            sizes = [size for _, size, _ in self._contents]  # the oldest first
            while len(sizes) >= 2 and sum(sizes) + found.st_size > BUDGET_BYTES:
                self._contents.popitem(last=False)
                del sizes[0]
            self._contents[key] = self._read(path)
        self._contents.move_to_end(key)
        return self._contents[key]
