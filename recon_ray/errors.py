"""Exceptions with one clear sentence for the user.

Every message names the file, row or configuration key and a remedy. A job prints the message
alone, without a traceback, and ends with :attr:`ReconError.exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class ReconError(Exception):
    """Root of the errors that a user can act on."""

    exit_code = 1


class ConfigError(ReconError):
    """The configuration or the command line is wrong or cannot be fulfilled."""

    exit_code = 2


class DataError(ReconError):
    """A data file, row or prepared set is missing, damaged or of another format."""


class CheckpointError(ReconError):
    """A checkpoint is damaged, foreign, or does not fit the configured model."""


class NoWeightsError(CheckpointError, ConfigError):
    """An option names weights that are not there."""


class StoppedError(ReconError):
    """The run was stopped (SIGTERM) and can be continued."""

    exit_code = 143


class OutOfMemoryError(ReconError):
    """The memory of a GPU or a machine is exhausted."""


class OpsError(ReconError):
    """A point-op backend was forced that is not available."""


class TeacherError(ReconError):
    """A teacher's weights are missing or are not the ones that were pinned."""


class TeacherNameError(TeacherError, ConfigError):
    """A teacher's name has no model or weights behind it."""


def as_record(error: ReconError) -> dict[str, str]:
    """Return the error as plain data; raised in a process of Ray it would be wrapped."""
    return {"error": type(error).__name__, "message": str(error)}


def from_record(record: Mapping[str, Any]) -> ReconError:
    """Return the error of a record of :func:`as_record`."""
    kind: type[ReconError] = globals().get(str(record["error"]), ReconError)
    return kind(record["message"])


# --- Errors inside what Ray raised ---------------------------------------------------------------


def find_recon_error(error: BaseException) -> ReconError | None:
    """Find the ReconError inside what Ray raised for it.

    Ray wraps an exception of a worker in others: as ``cause`` (in a class that derives from both,
    so that ``isinstance`` is no proof and the text is a traceback), as values of
    ``worker_failures``, or in ``args``.
    """
    own = [found for found in _nested(error) if isinstance(found, ReconError)]
    return next((found for found in own if not _is_wrapper(found)), own[0] if own else None)


def root_cause(error: BaseException) -> BaseException:
    """Return the first exception inside that wraps no other: the user's code or ours raised it."""
    if not _is_wrapper(error):
        return error
    return next((found for found in _nested(error) if not _is_wrapper(found)), error)


def _is_wrapper(error: BaseException) -> bool:
    return any(_held(error))


def _nested(error: BaseException) -> Iterator[BaseException]:
    """Walk through an exception and what it wraps or comes from, from the outside in."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += _held(current)
        if current.__cause__ is not None:
            pending.append(current.__cause__)


def _held(error: BaseException) -> list[BaseException]:
    """Exceptions that this one carries as attributes, in a dictionary of them, or in its args."""
    held: list[object] = []
    for value in (*vars(error).values(), *error.args):
        held += value.values() if isinstance(value, dict) else [value]
    return [item for item in held if isinstance(item, BaseException) and item is not error]
