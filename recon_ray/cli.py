"""The front door of every job: arguments, help, logging, errors, exit status, closing lines."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from recon_ray.config.help import dump_yaml, format_help
from recon_ray.config.loader import load
from recon_ray.errors import ConfigError, ReconError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

logger = logging.getLogger(__name__)

DEBUG_VARIABLE = "RECON_DEBUG"
INTERRUPTED = 130
_FLAGS = ("--help", "--print-config", "--dry-run")
_USAGE = (
    "usage: python jobs/{name}.py [CONFIG.yaml ...] [key=value ...]"
    " [--help [SECTION]] [--print-config] [--dry-run]"
)
_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class Job(Generic[ConfigT]):
    """What a job's main function gets.

    Attributes:
        name: Name of the job, as in ``jobs/<name>.py``.
        config: The validated configuration.
        origins: Place of every option that was set, by dotted key.
        files: YAML files read, in the order in which they take effect.
        dry_run: Build everything, take one step, report memory and time, stop.
    """

    name: str
    config: ConfigT
    origins: dict[str, str]
    files: tuple[Path, ...]
    dry_run: bool = False


@dataclass(frozen=True)
class JobResult:
    """What a job returns: a short table to print and the path of its ``result.json``.

    Attributes:
        table: The table.
        result_path: The path.
        failure: What went wrong in parts of the job that ended otherwise, in one sentence.
    """

    table: str
    result_path: Path | str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Flag:
    """A flag of one job, which shows something and stops: ``--cards [NAME]``.

    Attributes:
        meaning: What it shows, for ``--help``.
        show: Gives the text; gets the word after the flag, None if there is none.
    """

    meaning: str
    show: Callable[[str | None], str]


@dataclass(frozen=True)
class _CommandLine:
    arguments: tuple[str, ...]
    wants_help: bool = False
    section: str | None = None
    print_config: bool = False
    dry_run: bool = False
    shows: str | None = None
    shown: str | None = None


def run_job(
    name: str,
    schema: type[ConfigT],
    main: Callable[[Job[ConfigT]], JobResult | None],
    *,
    default: Path | None = None,
    description: str = "",
    flags: Mapping[str, Flag] | None = None,
    word: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job from the command line to its exit status; never raises an error of the job.

    The table and then, on the last line, the path of ``result.json`` go to standard output; log
    lines and errors go to standard error. A job's file ends with ``sys.exit(run_job(...))``.

    Args:
        name: Name of the job, as in ``jobs/<name>.py``.
        schema: Root model of the configuration.
        main: The job. It has to end what it started (Ray too) before it returns, or lines of theirs
            may come after the last one.
        default: YAML file to read if the command line names none.
        description: One sentence for ``--help``; by default the schema's docstring.
        flags: Flags of this job, by name (``--cards``).
        word: Option that a word alone sets: ``benchmark.py step`` for ``what=step``.
        arguments: Command line without the program; by default that of the process.

    Returns:
        0 done, 2 configuration or arguments wrong, 130 interrupted, 1 anything else.
    """
    flags = flags or {}
    try:
        line = _parse(sys.argv[1:] if arguments is None else arguments, flags, word)
        if line.wants_help:
            _say(_help(name, schema, default, description, flags, line.section))
            return 0
        if line.shows is not None:
            _say(flags[line.shows].show(line.shown))
            return 0
        loaded = load(schema, line.arguments, default=default)
        if line.print_config:
            _say(dump_yaml(loaded.config).rstrip("\n"))
            return 0
        set_up_logging()
        if default in loaded.files:
            logger.info("without a CONFIG.yaml the options of %s apply", default)
        result = main(Job(name, loaded.config, loaded.origins, loaded.files, line.dry_run))
    except KeyboardInterrupt:
        _complain(_interrupted("resume" in schema.model_fields))
        return INTERRUPTED
    except Exception as error:
        return _failed(name, error)
    if result is not None:
        lines = (result.table.rstrip(), result.result_path)
        _say("\n".join(str(line) for line in lines if line))
        if result.failure is not None:
            _complain(result.failure)
            return 1
    return 0


def set_up_logging(level: int = logging.INFO) -> None:
    """Send log records to standard error, one line each; other packages from WARNING on.

    Args:
        level: Level of recon_ray's own records (WARNING in workers other than the first).
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _StderrHandler)]:
        root.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(_LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    logging.getLogger("recon_ray").setLevel(level)


class _StderrHandler(logging.StreamHandler):
    """Marks the handler that is ours, so that a second set-up replaces it."""


class _LineFormatter(logging.Formatter):
    """One line a record: the time, the level if it is a warning or worse, the message."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        time, _, message = text.partition(" ")
        return f"{time} {record.levelname.lower()}: {message}"


# --- Command line -------------------------------------------------------------------------------


def _parse(arguments: Sequence[str], own: Mapping[str, Flag], option: str | None) -> _CommandLine:
    rest: list[str] = []
    flags: set[str] = set()
    words: dict[str, str] = {}  # that follow a flag
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, _, word = argument.partition("=")
        name = "--help" if name == "-h" else name
        if name in own or name == "--help":
            flags.add(name)
            if pending and not word and _is_section(pending[0]):
                word = pending.pop(0)
            if word:
                words[name] = word
        elif argument in _FLAGS:
            flags.add(argument)
        elif argument.startswith("-"):
            raise ConfigError(_unknown_flag(argument, own))
        else:
            rest.append(f"{option}={argument}" if option and _is_section(argument) else argument)
    shows = next((name for name in own if name in flags), None)
    return _CommandLine(
        tuple(rest),
        "--help" in flags,
        words.get("--help"),
        "--print-config" in flags,
        "--dry-run" in flags,
        shows,
        words.get(shows or ""),
    )


def _is_section(argument: str) -> bool:
    return argument.replace(".", "_").isidentifier() and not argument.endswith((".yaml", ".yml"))


def _unknown_flag(argument: str, own: Mapping[str, Flag]) -> str:
    bare = argument.lstrip("-")
    near = get_close_matches(argument, (*_FLAGS, *own), n=1)
    if "=" in bare:
        return f"{argument}: unknown flag; options have no dashes, did you mean {bare}?"
    if near:
        return f"{argument}: unknown flag; did you mean {near[0]}?"
    return f"{argument}: unknown flag; options are written key=value, see --help"


def _help(
    name: str,
    schema: type[BaseModel],
    default: Path | None,
    description: str,
    own: Mapping[str, Flag],
    section: str | None,
) -> str:
    table = format_help(schema, section, width=max(shutil.get_terminal_size((110, 24)).columns, 80))
    if section is not None:
        return table
    summary = description or (schema.__doc__ or "").strip().partition("\n")[0]
    files = f"Without a CONFIG.yaml it reads {default}." if default else ""
    head = "\n".join(part for part in (summary, files) if part)
    flags = (
        "  --help [SECTION]  describe all options, or those of a section such as run\n"
        "  --print-config    print the resolved configuration and stop\n"
        "  --dry-run         build everything, take one step, report memory and time, stop"
    )
    lines = [flags, *(f"  {flag + ' [NAME]':17} {found.meaning}" for flag, found in own.items())]
    blocks = (
        _USAGE.format(name=name),
        head,
        "\n".join(lines),
        "options (key, type, default, meaning):",
        table,
    )
    return "\n\n".join(block for block in blocks if block)


# --- Failures -----------------------------------------------------------------------------------


def _failed(name: str, error: Exception) -> int:
    """Say in one sentence what went wrong; the traceback goes to a file, or is shown on request."""
    own = find_recon_error(error)
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    if own is not None:
        _complain(str(own))
        return own.exit_code
    cause = root_cause(error)
    message = f"{type(cause).__name__}: {_first_line(cause)}"
    if not debug:
        file = _write_traceback(name, error)
        where = f"in {file}, shown with" if file else "shown with"
        message += f" (traceback {where} {DEBUG_VARIABLE}=1)"
    _complain(message)
    return 1


def find_recon_error(error: BaseException) -> ReconError | None:
    """Find the ReconError inside what Ray raised for it.

    Ray wraps an exception of a worker in others: as ``cause`` (in a class that derives from both,
    so that ``isinstance`` is no proof and the text is a traceback), as values of
    ``worker_failures``, or in ``args``.

    Args:
        error: What was caught.

    Returns:
        The error with its own message, or None if there is none inside.
    """
    own = [found for found in _nested(error) if isinstance(found, ReconError)]
    return next((found for found in own if not _is_wrapper(found)), own[0] if own else None)


def root_cause(error: BaseException) -> BaseException:
    """Give the exception that the user's code or ours raised, without Ray's wrapping.

    Args:
        error: What was caught.

    Returns:
        The first exception inside that wraps no other; the error itself if it is none of Ray's.
    """
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _write_traceback(name: str, error: BaseException) -> str | None:
    """Give the file that holds the traceback; None if it cannot be written, on a full disk."""
    try:
        handle, path = tempfile.mkstemp(prefix=f"recon_ray-{name}-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path


def _interrupted(can_resume: bool) -> str:
    if can_resume:
        return "interrupted; the same command with the same run.name continues from the last commit"
    return "interrupted; run the same command again"


def _complain(message: str) -> None:
    sys.stdout.flush()
    lines = message.splitlines() or ["no message"]
    sys.stderr.write("".join(f"error: {line}\n" for line in lines))
    sys.stderr.flush()


def _say(text: str) -> None:
    sys.stderr.flush()
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `... --help | head`
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
