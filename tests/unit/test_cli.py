from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from recon_ray.cli import CONFIGS, run_job, set_up_logging
from recon_ray.errors import CheckpointError, ConfigError, DataError, find_recon_error, root_cause
from recon_ray.tasks.registry import JOBS, Job, JobResult, JobSpec


class Optim(BaseModel):
    """The optimizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    lr: float = Field(5e-4, gt=0, description="Peak rate.")


class Config(BaseModel):
    """A job for tests."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    resume: str = Field("auto", description="What to continue.")
    optim: Optim = Field(default_factory=Optim, description="Optimizer.")


Main = Callable[[Job[Config]], JobResult | None]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep the logging of the test process, the debug switch and the temporary folder apart."""
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    root, own = logging.getLogger(), logging.getLogger("recon_ray")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)


def job(main: Main, *arguments: str, default: str | Path | None = None) -> int:
    return run_probe(main, arguments, default=default and str(default))


def run_probe(main: Main, arguments: Sequence[str] | None, **spec: Any) -> int:
    """Run a job of the registry that is there for this call only."""
    with pytest.MonkeyPatch.context() as patch:
        run = JobSpec(Config, lambda job: main(job) or JobResult(""), **spec)
        patch.setitem(JOBS, "probe", run)
        return run_job("probe", arguments)


def failing(error: BaseException) -> Main:
    def main(job: Job[Config]) -> None:
        raise error

    return main


def never(job: Job[Config]) -> None:
    raise AssertionError("the job ran")


# --- Success -----------------------------------------------------------------------------------
def test_the_last_line_is_the_path_of_the_result(capsys: Captured) -> None:
    def main(job: Job[Config]) -> JobResult:
        assert (job.name, job.config.optim.lr, job.dry_run) == ("probe", 3.0, False)
        assert job.origins == {"optim.lr": "command line"}
        return JobResult("accuracy  0.9\n", Path("runs/x/result.json"))

    assert job(main, "optim.lr=3") == 0
    assert capsys.readouterr().out == "accuracy  0.9\nruns/x/result.json\n"


def test_dry_run_and_the_command_line_of_the_process_are_passed_on(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    assert job(lambda job: seen.append(job.dry_run), "--dry-run") == 0
    assert seen == [True]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["jobs/probe.py", "optim.lr=7"])
    assert run_probe(lambda job: seen.append(job.config.optim.lr), None) == 0
    assert seen == [True, 7.0]


def test_log_lines_go_to_standard_error_once(capsys: Captured) -> None:
    def main(job: Job[Config]) -> None:
        logging.getLogger("recon_ray.train").info("epoch 1")
        logging.getLogger("recon_ray.train").warning("slow disk")
        logging.getLogger("elsewhere").info("chatter")

    set_up_logging()
    assert job(main) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(" ")[2] for line in err.splitlines()] == [
        "epoch 1",
        "warning: slow disk",
    ]


def test_the_file_that_is_read_unasked_is_named(capsys: Captured, tmp_path: Path) -> None:
    default = tmp_path / "default.yaml"
    default.write_text("optim: {lr: 1}\n")
    assert job(lambda found: None, default=default) == 0
    assert f"without a CONFIG.yaml the options of {default} apply" in capsys.readouterr().err
    (tmp_path / "own.yaml").write_text("optim: {lr: 2}\n")
    assert job(lambda found: None, str(tmp_path / "own.yaml"), default=default) == 0
    assert capsys.readouterr().err == ""


# --- Flags -------------------------------------------------------------------------------------
def test_help_shows_usage_flags_default_and_every_option(capsys: Captured) -> None:
    assert job(never, "--help", default="quickstart.yaml") == 0
    assert capsys.readouterr().out == (
        "usage: python jobs/probe.py [CONFIG.yaml ...] [key=value ...] [--help [SECTION]]"
        " [--print-config] [--dry-run]\n\n"
        "A job for tests.\nWithout a CONFIG.yaml it reads "
        f"{CONFIGS / 'quickstart.yaml'}.\n\n"
        "  --help [SECTION]  describe all options, or those of a section such as run\n"
        "  --print-config    print the resolved configuration and stop\n"
        "  --dry-run         build everything, take one step, report memory and time, stop\n\n"
        "options (key, type, default, meaning):\n\n"
        "  resume  text  auto  What to continue.\n\n"
        "optim: The optimizer.\n"
        "  optim.lr  number > 0  0.0005  Peak rate.\n"
    )


@pytest.mark.parametrize("arguments", [["--help", "optim"], ["--help=optim"], ["-h", "optim"]])
def test_help_of_one_section(capsys: Captured, arguments: list[str]) -> None:
    assert job(never, *arguments) == 0
    expected = "optim: The optimizer.\n  optim.lr  number > 0  0.0005  Peak rate.\n"
    assert capsys.readouterr().out == expected


def test_a_word_alone_sets_the_option_of_the_job_but_not_after_a_flag(capsys: Captured) -> None:
    asked: list[tuple[str, float]] = []

    def main(job: Job[Config]) -> None:
        asked.append((job.config.resume, job.config.optim.lr))

    def run(*arguments: str) -> str:
        assert run_probe(main, arguments, word="resume") == 0
        return capsys.readouterr().out

    run("never", "optim.lr=1")
    assert asked == [("never", 1.0)]
    assert "resume" in run("--help")
    for arguments in (["--help", "optim"], ["never", "--help", "optim"]):
        printed = run(*arguments)
        assert "optim.lr" in printed
        assert "resume" not in printed
    assert len(asked) == 1


def test_help_wins_over_wrong_options_and_print_config_can_be_read_again(capsys: Captured) -> None:
    assert job(never, "optim.lr=fast", "--help") == 0
    assert "optim.lr" in capsys.readouterr().out
    assert job(never, "--print-config", "optim.lr=1e-4") == 0
    assert capsys.readouterr().out == "resume: auto\noptim:\n  lr: 0.0001\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--dryrun", "--dryrun: unknown flag; did you mean --dry-run?"),
        (
            "--optim.lr=3",
            "--optim.lr=3: unknown flag; options have no dashes, did you mean optim.lr=3?",
        ),
        ("-x", "-x: unknown flag; options are written key=value, see --help"),
        ("tiny", "tiny: expected a YAML file or key=value"),
        ("optim.lr=0", "optim.lr (command line): expected a number > 0, found 0"),
        ("absent.yaml", "absent.yaml: no such file"),
        (
            "optim.lr=0 optim.l=1",
            "optim.lr (command line): expected a number > 0, found 0\n"
            "error: optim.l (command line): unknown key; did you mean optim.lr?",
        ),
    ],
)
def test_wrong_arguments_end_with_status_2(capsys: Captured, argument: str, message: str) -> None:
    assert job(never, *argument.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


# --- Failures ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("row 3 is damaged"), 1, "row 3 is damaged"),
        (ConfigError("row 3 is damaged"), 2, "row 3 is damaged"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; the same command with the same run.name continues from the last commit",
        ),
    ],
)
def test_our_errors_have_their_status(
    capsys: Captured, error: BaseException, status: int, message: str
) -> None:
    assert job(failing(error)) == status
    assert capsys.readouterr().err == f"error: {message}\n"


def test_unexpected_errors_are_one_line_and_a_traceback(capsys: Captured, tmp_path: Path) -> None:
    assert job(failing(RuntimeError("out of\nmemory"))) == 1
    (file,) = tmp_path.glob("recon_ray-probe-*.traceback.txt")
    assert capsys.readouterr().err == (
        f"error: RuntimeError: out of (traceback in {file}, shown with RECON_DEBUG=1)\n"
    )
    assert "Traceback" in file.read_text()
    assert "in main" in file.read_text()


def test_debug_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECON_DEBUG", "1")
    assert job(failing(RuntimeError("boom"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: RuntimeError: boom"
    assert not list(tmp_path.glob("*.traceback.txt"))


# --- What Ray wraps ----------------------------------------------------------------------------
class TaskError(Exception):
    """Like ray.exceptions.RayTaskError."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        super().__init__("a wall\nof text")

    def __str__(self) -> str:
        return "a wall\nof text"


class DualError(TaskError, DataError):
    """Like the class that Ray derives from both RayTaskError and the class of the cause."""


class GroupError(RuntimeError):
    """Like ray.train's WorkerGroupError."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("Training failed due to worker errors:\n[Rank 1]")
        self.worker_failures = failures


class TracedError(Exception):
    """Like the class in which Ray Train sends back a worker's exception."""

    def __init__(self, error: BaseException, text: str) -> None:
        self._base_exc = error

    def __str__(self) -> str:
        return "Traceback (most recent call last)"


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


OURS = DataError("part-0 is damaged")


@pytest.mark.parametrize(
    "error",
    [
        OURS,
        TaskError(OURS),
        DualError(OURS),
        GroupError({0: RuntimeError("peer lost"), 1: TracedError(OURS, "")}),
        GroupError({1: DualError(OURS)}),
        caused(RuntimeError("training failed"), GroupError({0: TaskError(OURS)})),
        RuntimeError("failed", OURS),
        caused(OURS, ConfigError("inner")),
    ],
    ids=["plain", "task", "dual", "group", "group-dual", "cause-chain", "args", "own-cause"],
)
def test_our_error_is_found_inside_what_ray_raises(capsys: Captured, error: Exception) -> None:
    assert find_recon_error(error) is OURS
    assert job(failing(error)) == 1
    assert capsys.readouterr().err == "error: part-0 is damaged\n"


def test_a_foreign_error_is_named_by_its_root_and_a_circle_of_causes_ends(capsys: Captured) -> None:
    inner = ValueError("shapes differ")
    error = GroupError({0: TracedError(inner, "")})
    assert find_recon_error(error) is None
    assert root_cause(error) is inner
    assert job(failing(error)) == 1
    assert capsys.readouterr().err.startswith("error: ValueError: shapes differ (traceback in ")
    a, b = RuntimeError("a"), RuntimeError("b")
    a.__cause__, b.__cause__ = b, a
    assert find_recon_error(a) is None
    assert root_cause(a) is a


def test_the_exceptions_of_this_ray_are_unwrapped() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    api = pytest.importorskip("ray.train.v2.api.exceptions")
    internal = pytest.importorskip("ray.train.v2._internal.exceptions")
    ours = CheckpointError("step 7 is damaged")
    task = exceptions.RayTaskError("f", "Traceback\nwall", ours, "title", 1, "127.0.0.1")
    wrapped = [
        task,
        task.make_dual_exception_instance(),
        api.WorkerGroupError("[Rank 0]", {0: internal.UserExceptionWithTraceback(ours, "wall")}),
        api.ControllerError(ours),
    ]
    for error in wrapped:
        assert find_recon_error(error) is ours
        assert str(find_recon_error(error)) == "step 7 is damaged"


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, "-c", code], text=True, check=False, env=environment, **options
    )


def test_the_front_door_imports_neither_ray_nor_torch() -> None:
    code = "import sys, recon_ray.cli; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    assert python(code, capture_output=True).stdout.strip() == "[]"


def test_a_reader_that_stops_early_is_no_error() -> None:
    code = (
        "import sys; from recon_ray.cli import run_job; sys.exit(run_job('pretrain', ['--help']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = python(code, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
