"""Growing files of a run on an object store, which cannot append to an object.

``metrics.jsonl`` goes on in ``metrics.jsonl.00001`` and so forth. A segment of
:data:`SEGMENT_BYTES` or more is complete; only the last one is sent again when the file grows. A
short file is one object of its own name, and so is one of an older version, of any length.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from recon_ray.storage import read_bytes, with_retries

SEGMENT_BYTES = 1 << 18


def segment(path: str, number: int) -> str:
    """Return the place of a segment."""
    return f"{path}.{number:05d}" if number else path


def read_segment(filesystem: pafs.FileSystem, path: str, number: int) -> bytes | None:
    """Return the content of a segment, None for a missing one.

    Raises:
        OSError: If the storage does not answer.
    """
    return with_retries(lambda: read_bytes(filesystem, segment(path, number)))


def read_segments(filesystem: pafs.FileSystem, path: str) -> bytes | None:
    """Return the content of a growing file, None for a missing one.

    Raises:
        OSError: If the storage does not answer.
    """
    parts: list[bytes] = []
    while (part := read_segment(filesystem, path, len(parts))) is not None:
        parts.append(part)
        if len(part) < SEGMENT_BYTES:
            break
    return b"".join(parts) if parts else None


def list_segments(filesystem: pafs.FileSystem, path: str) -> list[int]:
    """Return the numbers of the segments that are there, in order.

    Raises:
        OSError: If the storage does not answer.
    """
    root, _, name = path.rpartition("/")
    selector = pafs.FileSelector(root, allow_not_found=True)
    found = [info.base_name for info in with_retries(lambda: filesystem.get_file_info(selector))]
    numbers = [int(n.rpartition(".")[2]) for n in found if _is_later_segment(n, name)]
    return sorted([0] * (name in found) + numbers)


def _is_later_segment(found: str, name: str) -> bool:
    head, _, number = found.rpartition(".")
    return head == name and len(number) == 5 and number.isdecimal()


@dataclass
class GrowingFile:
    """How far a growing local file has been sent.

    Args:
        filesystem: The object store.
        path: Place of the file there.
    """

    filesystem: pafs.FileSystem
    path: str

    def __post_init__(self) -> None:
        self._number, self._offset = 0, 0
        self._sent = zlib.crc32(b"")
        self._later: list[int] = []

    def fetch(self, reaches: Callable[[bytes], bool]) -> bytes:
        """Return the end of the file, with which a local one begins that will be sent.

        Args:
            reaches: Whether the content of the last segments is enough.

        Raises:
            OSError: If the storage does not answer.
        """
        numbers, content = list_segments(self.filesystem, self.path), b""
        for number in reversed(numbers):
            content = (read_segment(self.filesystem, self.path, number) or b"") + content
            self._number = number
            if reaches(content):
                break
        self._later = [number for number in numbers if number > self._number]
        self._sent = zlib.crc32(content)
        return content

    def send(self, local: Path) -> None:
        """Send what is new in the local file, and what precedes it in the last segment.

        Raises:
            OSError: If the storage refuses.
        """
        with local.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        if len(content) >= SEGMENT_BYTES:  # is complete with a whole line
            content = content[: content.rfind(b"\n") + 1] or content
        mark = zlib.crc32(content)
        if mark != self._sent:
            with_retries(lambda: self._write(content))
            for number in self._later:
                with_retries(partial(self.filesystem.delete_file, segment(self.path, number)))
            self._later = []
        self._sent = mark
        if len(content) >= SEGMENT_BYTES and not self._later:
            self._number, self._offset = self._number + 1, self._offset + len(content)
            self._sent = zlib.crc32(b"")

    def _write(self, content: bytes) -> None:
        with self.filesystem.open_output_stream(segment(self.path, self._number)) as stream:
            stream.write(content)

    def append(self, text: bytes) -> None:
        """Append whole lines in place, without a local file.

        Raises:
            OSError: If the storage does not answer.
        """
        before = read_segment(self.filesystem, self.path, self._number) or b""
        if len(before) >= SEGMENT_BYTES:
            self._number = list_segments(self.filesystem, self.path)[-1]
            before = read_segment(self.filesystem, self.path, self._number) or b""
        if len(before) >= SEGMENT_BYTES:
            self._number, before = self._number + 1, b""
        self._write(before + line_after(before) + text)


def line_after(before: bytes) -> bytes:
    """Return the end of a last line that a killed process, or a full disk, has cut off."""
    return b"" if not before or before.endswith(b"\n") else b"\n"
