"""Private names of Ray and torch are used only where workarounds are kept, and each has a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIBRARIES = {"ray", "torch"}
# What may use private names of which library.
ALLOWED = {
    "recon_ray/cluster/workarounds/": "ray",
    "recon_ray/torch_internals.py": "torch",
}
TESTS = {
    "recon_ray/torch_internals.py": "tests/unit/test_torch_internals.py",
}
STATED = ("Works around:", "Seen on:", "Can go:")


def private_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Find private names of the libraries in imports, attribute chains and strings."""
    libraries = {name: name for name in LIBRARIES}  # local name to the name it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                libraries[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                libraries[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in libraries:
                yield f"{libraries[root]}.{rest}", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def uses(source: str) -> list[tuple[str, str, int]]:
    """List library, private name and line of every use in a module."""
    found = set()
    for name, line in private_names(ast.parse(source)):
        library, *parts = name.split(".")
        is_name = all(part.isidentifier() for part in parts) and parts
        if library in LIBRARIES and is_name and any(p[0] == "_" and p[:2] != "__" for p in parts):
            found.add((library, name, line))
    return sorted(found, key=lambda use: (use[2], use[1]))


def allowed(path: str) -> str | None:
    return next((lib for start, lib in ALLOWED.items() if path.startswith(start)), None)


def package() -> Iterator[Path]:
    for folder in ("recon_ray", "jobs"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def workarounds() -> list[Path]:
    found = [p for p in package() if allowed(p.relative_to(ROOT).as_posix())]
    return [path for path in found if path.name != "__init__.py"]


def test_private_names_are_used_in_the_rooms_for_them_only() -> None:
    stray = []
    for path in package():
        place = path.relative_to(ROOT).as_posix()
        for library, name, line in uses(path.read_text(encoding="utf-8")):
            if allowed(place) != library:
                stray.append(f"{place}:{line}: {name}")
    assert stray == []


@pytest.mark.parametrize("path", workarounds(), ids=lambda path: path.stem)
def test_each_module_has_a_test_and_each_function_says_when_it_can_go(path: Path) -> None:
    place = path.relative_to(ROOT)
    unit = TESTS.get(place.as_posix(), f"tests/unit/cluster/workarounds/test_{path.name}")
    assert (ROOT / unit).is_file()
    if path.stem == "environment":
        return  # documented variables; each has a comment
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node) or ""
            missing = [words for words in STATED if words not in text]
            assert not missing or "otherwise as" in text, f"{node.name}: {missing}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from ray._private import state", "ray._private.state"),
        ("from ray import _raylet", "ray._raylet"),
        ("import ray.train.v2._internal.constants", "ray.train.v2._internal.constants"),
        ("import torch\ntorch._dynamo.reset()", "torch._dynamo"),
        ("import torch.distributed as dist\ndist._x", "torch.distributed._x"),
        ("from torch import nn\nnn.Module._apply", "torch.nn.Module._apply"),
        ("name = 'ray.data._internal.progress'", "ray.data._internal.progress"),
    ],
)
def test_a_stray_use_is_found(source: str, name: str) -> None:
    assert name in [found for _, found, _ in uses(source)]


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.__version__", "self._torch = ray.get(x)", "'ray. It is _so_'"]
)
def test_other_names_are_not_reported(source: str) -> None:
    assert uses(source) == []
