"""The house: imports go one way, Ray stays where it belongs, rooms stay small."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from recon_ray.config.fields import index
from recon_ray.tasks.registry import JOBS

ROOT = Path(__file__).resolve().parents[2]

# --- The rules ----------------------------------------------------------------------------------
# A module imports from units above its own here; the units of one line do not know each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors", "machine", "torch_internals", "version", "protocols"),
    ("storage",),
    ("config",),
    ("points",),
    ("models",),
    ("losses",),
    ("data",),
    ("teachers",),
    ("figures",),
    ("runs",),
    ("weights",),
    ("train",),
    ("cluster",),
    ("tasks",),
    ("sweeps",),
    ("reproduce", "benchmarks", "doctor"),
    ("api", "cli"),
    ("__main__",),
    ("jobs",),
)
# No configuration object below the jobs' own folders: plain arguments.
NEVER: dict[str, set[str]] = {
    unit: {"config"} for unit in ("points", "models", "losses", "data", "teachers", "runs")
}
# The package itself imports its parts inside functions only (the public API is lazy).
LAZY_ROOT = {"errors", "version"}
# Ray: anywhere in these folders, inside functions in `data/loading`, nowhere else.
RAY_FOLDERS = tuple(f"recon_ray/{unit}/" for unit in ("cluster", "sweeps", "doctor", "benchmarks"))
RAY_IN_FUNCTIONS = ("recon_ray/data/loading/",)
FORBIDDEN_NAMES = {"utils", "misc", "helpers"}
NEVER_IMPORTED = {"jobs", "tests"}

RANK = {unit: rank for rank, line in enumerate(ORDER) for unit in line}

# Ratchets: raising a number is one line, with the reason, in the commit that needs it.
MOST_LINES = {"recon_ray": 45_500, "tests": 30_300}
MOST_MODULES_A_FOLDER = 14
MOST_OPTIONS = 265
# Names that say what a module is in every folder of a job.
SHARED_NAMES = {"config", "job", "task", "evaluation"}


# --- Reading the imports -------------------------------------------------------------------------
@dataclass(frozen=True)
class Import:
    """One import: the dotted module, where, whether only inside a function or for types."""

    module: str
    line: int
    is_lazy: bool
    is_star: bool = False


def imports(path: Path, root: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = path.relative_to(root).with_suffix("").parts[:-1]
    yield from _walk(tree, package, is_lazy=False)


def _walk(node: ast.AST, package: tuple[str, ...], *, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, is_lazy)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, package, is_lazy=is_lazy)
        elif isinstance(child, ast.Call) and child.args and _name(child.func) == "import_module":
            if isinstance(child.args[0], ast.Constant):
                yield Import(str(child.args[0].value), child.lineno, is_lazy)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from _walk(child, package, is_lazy=is_lazy or is_function or is_types)


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _from(node: ast.ImportFrom, package: tuple[str, ...], *, is_lazy: bool) -> Iterator[Import]:
    base = package[: len(package) - node.level + 1] if node.level else ()
    module = ".".join((*base, *([node.module] if node.module else [])))
    for alias in node.names:
        # `from recon_ray import points` imports recon_ray.points
        name = f"{module}.{alias.name}" if module == "recon_ray" else module
        yield Import(name, node.lineno, is_lazy, is_star=alias.name == "*")


def unit_of(path: Path, root: Path) -> str:
    """Return the layer unit of a file: its folder or module in recon_ray, or "jobs"."""
    parts = path.relative_to(root).with_suffix("").parts
    return "jobs" if parts[0] == "jobs" else parts[1]


# --- Checking ------------------------------------------------------------------------------------
def violations(root: Path) -> list[str]:
    """List every break of the rules in a tree, as "file:line: what"."""
    found = []
    for folder in ("recon_ray", "jobs"):
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root).as_posix()
            found += [f"{relative}: {text}" for text in _of_name(path, root)]
            for item in imports(path, root):
                problems = [*_of_layer(unit_of(path, root), item), *_of_import(relative, item)]
                found += [f"{relative}:{item.line}: {text}" for text in problems]
    return found


def _of_name(path: Path, root: Path) -> Iterator[str]:
    bad = FORBIDDEN_NAMES & set(path.relative_to(root).with_suffix("").parts)
    if bad:
        yield f"a module named {', '.join(sorted(bad))}"
    unit = unit_of(path, root)
    if unit not in {*RANK, "__init__"}:
        yield f"{unit} has no place; give it one in {Path(__file__).name}"


def _of_import(relative: str, item: Import) -> Iterator[str]:
    top = item.module.partition(".")[0]
    if item.is_star:
        yield f"import * from {item.module}"
    if top in NEVER_IMPORTED:
        yield f"imports {top}"
    if top == "ray" and not relative.startswith(RAY_FOLDERS):
        if not relative.startswith(RAY_IN_FUNCTIONS):
            yield "imports ray"
        elif not item.is_lazy:
            yield "imports ray outside a function"


def _of_layer(unit: str, item: Import) -> Iterator[str]:
    parts = item.module.split(".")
    other = parts[1] if parts[0] == "recon_ray" and len(parts) > 1 else unit
    if other == unit or unit not in {*RANK, "__init__"}:
        return
    if other not in RANK:
        return  # an attribute of the package (its version, its public functions)
    if unit == "__init__":
        if not item.is_lazy and other not in LAZY_ROOT:
            yield f"the package imports {other} outside a function"
    elif not _may_import(unit, other):
        yield f"{unit} imports {other}"


def _may_import(unit: str, other: str) -> bool:
    return other not in NEVER.get(unit, set()) and RANK[other] < RANK[unit]


def modules(root: Path) -> list[Path]:
    """List the modules of the package, without the face of each folder."""
    return [p for p in sorted((root / "recon_ray").rglob("*.py")) if p.name != "__init__.py"]


def repeated_names(root: Path) -> dict[str, list[str]]:
    """Find the names that several modules share, besides those that are meant to be shared."""
    places: dict[str, list[str]] = {}
    for path in modules(root):
        places.setdefault(path.stem, []).append(path.relative_to(root).as_posix())
    return {
        name: found
        for name, found in places.items()
        if len(found) > 1 and name not in {*SHARED_NAMES, "__main__"}
    }


def faces(root: Path) -> list[str]:
    """List the folders whose ``__init__.py`` hands on names that are defined elsewhere."""
    found = []
    for path in sorted((root / "recon_ray").rglob("__init__.py")):
        public = path.parent == root / "recon_ray"  # lazily, for `recon_ray.embed`
        eager = [
            i for i in imports(path, root) if i.module.startswith("recon_ray") and not i.is_lazy
        ]
        if eager and not public:
            found.append(path.relative_to(root).as_posix())
    return found


# --- Tests ---------------------------------------------------------------------------------------
def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def test_names_are_imported_from_the_module_that_defines_them() -> None:
    assert faces(ROOT) == []


def test_no_two_modules_have_one_name() -> None:
    assert repeated_names(ROOT) == {}


@pytest.mark.parametrize("folder", MOST_LINES)
def test_the_code_stays_within_its_ceiling(folder: str) -> None:
    lines = sum(len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py"))
    assert lines <= MOST_LINES[folder], f"{folder} has {lines:,} lines"


def test_no_folder_has_more_modules_than_one_sees_at_a_glance() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in modules(ROOT))
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES_A_FOLDER} == {}


def test_there_are_no_more_options_than_agreed() -> None:
    options = {key for spec in JOBS.values() for key in index(spec.load_config()).options}
    print(f"{len(options)} option keys")  # noqa: T201
    assert len(options) <= MOST_OPTIONS


def test_the_actor_beside_the_driver_loads_nothing_large() -> None:
    """Its process would take seconds and hundreds of megabytes for torch and Ray Train."""
    path = ROOT / "recon_ray" / "cluster" / "stop_actor.py"
    found = {item.module for item in imports(path, ROOT)}
    assert found <= {*sys.stdlib_module_names, "__future__"}


def test_the_walk_sees_the_whole_package() -> None:
    units = {unit_of(path, ROOT) for path in (ROOT / "recon_ray").rglob("*.py")}
    assert units >= {"errors", "protocols", "config", "points", "models", "data", "train", "cli"}
    count = sum(1 for path in (ROOT / "recon_ray").rglob("*.py") for _ in imports(path, ROOT))
    assert count > 100


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("recon_ray/points/ops.py", "from recon_ray.models import recon", "points imports models"),
        ("recon_ray/points/ops.py", "import recon_ray.train.loop", "points imports train"),
        ("recon_ray/points/ops.py", "from recon_ray import data", "points imports data"),
        ("recon_ray/points/ops.py", "from ..models import recon", "points imports models"),
        ("recon_ray/models/x.py", "from recon_ray.losses import chamfer", "models imports losses"),
        ("recon_ray/models/x.py", "from recon_ray.config import load", "models imports config"),
        ("recon_ray/data/x.py", "from recon_ray.teachers import bank", "data imports teachers"),
        ("recon_ray/train/x.py", "def f():\n  import recon_ray.cli", "train imports cli"),
        ("recon_ray/tasks/x.py", "from recon_ray.sweeps import plan", "tasks imports sweeps"),
        ("recon_ray/figures/x.py", "import recon_ray.runs.folder", "figures imports runs"),
        ("recon_ray/cli.py", "import jobs.pretrain", "imports jobs"),
        ("jobs/pretrain.py", "from tests.conftest import tiny", "imports tests"),
        ("recon_ray/train/loop.py", "def f():\n  import ray", "imports ray"),
        ("recon_ray/train/loop.py", "from ray.train import report", "imports ray"),
        ("jobs/pretrain.py", "import ray.data", "imports ray"),
        ("recon_ray/train/x.py", "x = import_module('ray')", "imports ray"),
        ("recon_ray/points/x.py", "importlib.import_module('recon_ray.data')", "imports data"),
        ("recon_ray/data/loading/stream.py", "import ray", "imports ray outside a function"),
        ("recon_ray/points/ops.py", "from torch import *", "import * from torch"),
        ("recon_ray/points/utils.py", "", "a module named utils"),
        ("recon_ray/helpers/x.py", "", "a module named helpers"),
        ("recon_ray/surprise.py", "", "surprise has no place; give it one in test_house.py"),
        ("recon_ray/__init__.py", "import recon_ray.models", "the package imports models outside"),
    ],
)
def test_broken_rules_are_reported(tmp_path: Path, file: str, source: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert any(expected in line for line in violations(tmp_path)), violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recon_ray/train/x.py", "from recon_ray.errors import DataError\nimport recon_ray.data.x"),
        ("recon_ray/losses/x.py", "from recon_ray.models.recon import ReconOutput"),
        ("recon_ray/data/loading/stream.py", "def f():\n  import ray.data"),
        (
            "recon_ray/cluster/x.py",
            "import ray\nfrom recon_ray.config.sections.common import Section",
        ),
        ("recon_ray/figures/x.py", "from recon_ray.points import ops"),
        ("recon_ray/sweeps/x.py", "import ray"),
        ("recon_ray/__init__.py", "def f():\n  from recon_ray.models import presets"),
        ("jobs/x.py", "from recon_ray import __version__, figures\nfrom recon_ray import cluster"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert violations(tmp_path) == []


def test_a_name_twice_a_face_and_a_full_folder_are_found(tmp_path: Path) -> None:
    for file, source in {
        "a/plan.py": "",
        "b/plan.py": "",
        "a/config.py": "",
        "b/config.py": "",
        "a/__init__.py": "from recon_ray.a.plan import x",
        "b/__init__.py": '"""A folder."""',
        "__init__.py": "def f():\n  from recon_ray.a import plan",
    }.items():
        path = tmp_path / "recon_ray" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert repeated_names(tmp_path) == {"plan": ["recon_ray/a/plan.py", "recon_ray/b/plan.py"]}
    assert faces(tmp_path) == ["recon_ray/a/__init__.py"]
