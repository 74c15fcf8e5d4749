"""Imports go one way, and Ray stays where it belongs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# --- The rules ----------------------------------------------------------------------------------

# A module imports from layers above its own here; the units of one layer do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "machine"),
    ("config",),
    ("points",),
    ("models", "losses"),
    ("data", "weights"),
    ("train",),
    ("tasks",),
    ("api",),
    ("cluster",),
    ("doctor",),
    ("cli",),
    ("programs",),
    ("jobs",),
)
# What a unit may import although the order says otherwise: losses read the outputs of the models.
ALSO: dict[str, set[str]] = {"losses": {"models"}}
# Units beside the order: what they may import, and who may import them.
BESIDE: dict[str, tuple[set[str], set[str]]] = {
    "visualize": ({"errors", "points", "models", "tasks"}, {"cli", "programs", "jobs"}),
}
# No configuration object below tasks: plain arguments.
NEVER: dict[str, set[str]] = {
    unit: {"config"} for unit in ("points", "models", "losses", "data", "weights", "train")
}
# The package itself imports its parts inside functions only (the public API is lazy).
LAZY_ROOT = {"errors"}
# Ray: anywhere in these folders, inside functions in these files, nowhere else.
RAY_FOLDERS = ("recon_ray/cluster",)
RAY_IN_FUNCTIONS = ("recon_ray/data/loading/stream.py", "recon_ray/sweeps/search_space.py")
FORBIDDEN_NAMES = {"utils", "misc", "common", "helpers"}
NEVER_IMPORTED = {"jobs", "tests"}

RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}


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
    """Give the layer unit of a file: its folder or module in recon_ray, or "jobs"."""
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
    if unit not in {*RANK, *BESIDE, "__init__"}:
        yield f"{unit} has no layer; give it one in {Path(__file__).name}"


def _of_import(relative: str, item: Import) -> Iterator[str]:
    top = item.module.partition(".")[0]
    if item.is_star:
        yield f"import * from {item.module}"
    if top in NEVER_IMPORTED:
        yield f"imports {top}"
    if top == "ray" and not relative.startswith(RAY_FOLDERS):
        if relative not in RAY_IN_FUNCTIONS:
            yield "imports ray"
        elif not item.is_lazy:
            yield "imports ray outside a function"


def _of_layer(unit: str, item: Import) -> Iterator[str]:
    parts = item.module.split(".")
    other = parts[1] if parts[0] == "recon_ray" and len(parts) > 1 else unit
    known = {*RANK, *BESIDE}
    if other == unit or unit not in {*known, "__init__"}:
        return
    if other not in known:
        return  # an attribute of the package (its version, its public functions)
    if unit == "__init__":
        if not item.is_lazy and other not in LAZY_ROOT:
            yield f"the package imports {other} outside a function"
    elif not _may_import(unit, other):
        yield f"{unit} imports {other}"


def _may_import(unit: str, other: str) -> bool:
    if other in NEVER.get(unit, set()):
        return False
    if unit in BESIDE or other in BESIDE:
        return (
            other in BESIDE.get(unit, ({other}, ()))[0]
            and unit in BESIDE.get(other, ((), {unit}))[1]
        )
    return RANK[other] < RANK[unit] or other in ALSO.get(unit, set())


# --- Tests ---------------------------------------------------------------------------------------


def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def test_the_actor_beside_the_driver_loads_nothing_large() -> None:
    """Its process would take seconds and hundreds of megabytes for torch and Ray Train."""
    path = ROOT / "recon_ray" / "cluster" / "stop_actor.py"
    found = {item.module for item in imports(path, ROOT)}
    assert found <= {*sys.stdlib_module_names, "__future__"}


def test_the_walk_sees_the_whole_package() -> None:
    units = {unit_of(path, ROOT) for path in (ROOT / "recon_ray").rglob("*.py")}
    assert units >= {"errors", "config", "points", "models", "data", "train", "cli"}
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
        ("recon_ray/weights/x.py", "from recon_ray.data import prepared", "weights imports data"),
        ("recon_ray/train/x.py", "def f():\n  import recon_ray.cli", "train imports cli"),
        ("recon_ray/tasks/x.py", "from recon_ray.figures import ply", "tasks imports visualize"),
        (
            "recon_ray/visualize/x.py",
            "import recon_ray.data.format.schema",
            "visualize imports data",
        ),
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
        ("recon_ray/surprise.py", "", "surprise has no layer; give it one in test_layering.py"),
        ("recon_ray/__init__.py", "import recon_ray.models", "the package imports models outside"),
    ],
)
def test_a_break_of_each_rule_is_reported(
    tmp_path: Path, file: str, source: str, expected: str
) -> None:
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
        ("recon_ray/visualize/x.py", "from recon_ray.points import ops"),
        ("recon_ray/__init__.py", "def f():\n  from recon_ray.models import presets"),
        (
            "jobs/x.py",
            "from recon_ray import __version__, visualize\nfrom recon_ray import cluster",
        ),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert violations(tmp_path) == []
