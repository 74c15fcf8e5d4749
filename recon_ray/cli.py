"""Command line of every job: arguments, help, logging, errors, exit status, closing lines."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel

from recon_ray.config.help import dump_yaml, format_help
from recon_ray.config.loader import load
from recon_ray.errors import ConfigError, find_recon_error, root_cause
from recon_ray.tasks.registry import JOBS, Flag, Job, JobSpec, find_job, load_object

logger = logging.getLogger(__name__)

#: Files that come with the package; a job's default lies there.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEBUG_VARIABLE = "RECON_DEBUG"
INTERRUPTED = 130
_FLAGS = ("--help", "--print-config", "--dry-run")
_USAGE = (
    "usage: python jobs/{name}.py [CONFIG.yaml ...] [key=value ...]"
    " [--help [SECTION]] [--print-config] [--dry-run]"
)
_LIST_USAGE = "usage: python -m recon_ray JOB [CONFIG.yaml ...] [key=value ...] [--help]"
_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class _CommandLine:
    arguments: tuple[str, ...]
    wants_help: bool = False
    section: str | None = None
    print_config: bool = False
    dry_run: bool = False
    shows: str | None = None
    shown: str | None = None


def run_job(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a job of the registry from its command line to its exit status; never raises its errors.

    The table and then, on the last line, the path of ``result.json`` go to standard output; log
    lines and errors go to standard error. The job's main function has to end what it started (Ray
    too) before it returns, or lines of theirs may come after the last one.

    Args:
        name: Name of the job, as in ``jobs/<name>.py``.
        arguments: Command line without the program; by default that of the process.

    Returns:
        0 done, 2 configuration or arguments wrong, 130 interrupted, 1 anything else.
    """
    can_resume = False
    try:
        job = find_job(name)
        line = _parse(sys.argv[1:] if arguments is None else arguments, job)
        if line.shows is not None:
            _say(load_object(job.flags[line.shows].show)(line.shown))
            return 0
        schema = job.load_config()
        can_resume = "resume" in schema.model_fields
        default = None if job.default is None else CONFIGS / job.default
        if line.wants_help:
            _say(_help(name, job, schema, default, line.section))
            return 0
        loaded = load(schema, line.arguments, default=default)
        if line.print_config:
            _say(dump_yaml(loaded.config).rstrip("\n"))
            return 0
        set_up_logging()
        if default in loaded.files:
            logger.info("without a CONFIG.yaml the options of %s apply", default)
        run = job.load_main()
        result = run(Job(name, loaded.config, loaded.origins, loaded.files, line.dry_run))
    except KeyboardInterrupt:
        way = "run the same command again"
        if can_resume:
            way = "the same command with the same run.name continues from the last commit"
        _complain(f"interrupted; {way}")
        return INTERRUPTED
    except Exception as error:
        return _failed(name, error)
    lines = [str(line) for line in (result.table.rstrip(), result.result_path) if line]
    if lines:
        _say("\n".join(lines))
    if result.failure is not None:
        _complain(result.failure)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m recon_ray JOB [...]``; without a job, list them."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help"):
        _say(_list_jobs())
        return 0
    return run_job(name, rest[:-1])


def _list_jobs() -> str:
    """Return the jobs with the first line of each one's docstring, without its file name."""
    lines = [_LIST_USAGE, "", "jobs:"]
    for name, job in JOBS.items():
        text = _summary(job.load_config())
        lines.append(f"  {name:16} {text.partition(': ')[2] or text}")
    return "\n".join(lines)


def _summary(schema: type[BaseModel]) -> str:
    return (schema.__doc__ or "").strip().partition("\n")[0]


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


def _parse(arguments: Sequence[str], job: JobSpec) -> _CommandLine:
    own, option = job.flags, job.word
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
    name: str, job: JobSpec, schema: type[BaseModel], default: Path | None, section: str | None
) -> str:
    table = format_help(schema, section, width=max(shutil.get_terminal_size((110, 24)).columns, 80))
    if section is not None:
        return table
    files = f"Without a CONFIG.yaml it reads {default}." if default else ""
    head = "\n".join(part for part in (_summary(schema), files) if part)
    flags = [
        "  --help [SECTION]  describe all options, or those of a section such as run",
        "  --print-config    print the resolved configuration and stop",
        "  --dry-run         build everything, take one step, report memory and time, stop",
        *(f"  {flag + ' [NAME]':17} {found.meaning}" for flag, found in job.flags.items()),
    ]
    title = "options (key, type, default, meaning):"
    blocks = (_USAGE.format(name=name), head, "\n".join(flags), title, table)
    return "\n\n".join(block for block in blocks if block)


# --- Failures -----------------------------------------------------------------------------------


def _failed(name: str, error: Exception) -> int:
    """Report an error in one sentence; its traceback goes to a file, or is shown on request."""
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


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _write_traceback(name: str, error: BaseException) -> str | None:
    """Return the file that holds the traceback; None if it cannot be written, on a full disk."""
    try:
        handle, path = tempfile.mkstemp(prefix=f"recon_ray-{name}-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path


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
