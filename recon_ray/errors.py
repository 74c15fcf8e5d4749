"""Exceptions with one clear sentence for the user.

Every message names the file, row or configuration key and says what to do. A job prints the message
alone, without a traceback, and ends with :attr:`ReconError.exit_code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ReconError(Exception):
    """Root of the errors that a user can act on."""

    exit_code = 1


class ConfigError(ReconError):
    """The configuration or the command line is wrong, or asks for what cannot be had."""

    exit_code = 2


class DataError(ReconError):
    """A data file, row or prepared set is missing, damaged or of another format."""


class CheckpointError(ReconError):
    """A checkpoint is damaged, foreign, or does not fit the configured model."""


class StoppedError(ReconError):
    """The run was asked to end (SIGTERM), and can be continued."""

    exit_code = 143


class OutOfMemoryError(ReconError):
    """The memory of a GPU or a machine is exhausted."""


class OpsError(ReconError):
    """A point-op backend was forced that is not available."""


class TeacherError(ReconError):
    """A teacher's weights are missing or are not the ones that were pinned."""


class TeacherNameError(TeacherError, ConfigError):
    """What a teacher's name asks for does not exist, so that the configuration has to change."""


def as_record(error: ReconError) -> dict[str, str]:
    """The error as plain data: raised in a process of Ray, it would come wrapped, or be retried."""
    return {"error": type(error).__name__, "message": str(error)}


def from_record(record: Mapping[str, Any]) -> ReconError:
    """The error that :func:`as_record` was given."""
    kind: type[ReconError] = globals().get(str(record["error"]), ReconError)
    return kind(record["message"])
